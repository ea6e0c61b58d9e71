"""The MLflow run that holds what a watch has read: one a server and version, whoever looks, and however often."""

from collections.abc import Iterator
from contextlib import contextmanager

from specdec.errors import TransientError
from specdec.tracking.runs import DrafterRun
from specdec.tracking.store import Store, hide_credentials, speaking
from specdec.tracking.watch import Promise


@contextmanager
def watch_run(store: Store, promise: Promise, url: str) -> Iterator[DrafterRun]:
    """Figures that cannot be sent are lost with a word: the watch itself goes on."""
    run = DrafterRun(store, _run_id(store, promise, hide_credentials(url)))
    yield run
    try:
        run.flush()
    except TransientError as error:
        print(f"specdec: {error}: this reading is not in MLflow", flush=True)


def _run_id(store: Store, promise: Promise, url: str) -> str:
    tags = {"specdec.watch.url": url, "specdec.model": promise.model, "specdec.version": promise.version}
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    with speaking(store.location):
        found = store.client.search_runs([store.experiment_id], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        name = f"watch {promise.model} {promise.version}"
        made = store.client.create_run(store.experiment_id, tags=tags, run_name=name)
    return str(made.info.run_id)
