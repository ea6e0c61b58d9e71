"""The MLflow run that holds what a watch has read: one a server and version, whoever looks, and however often."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specdec.errors import TransientError
from specdec.tracking.runs import DrafterRun
from specdec.tracking.store import Store, hide_credentials, speaking
from specdec.tracking.unsent import Unsent
from specdec.tracking.watch import Promise


@contextmanager
def watch_run(store: Store, promise: Promise, url: str, root: Path) -> Iterator[DrafterRun]:
    """Figures that cannot be sent wait below `root`/.specdec for the next look. Raises TransientError where the run
    itself cannot be found or made."""
    run_id = _run_id(store, promise, hide_credentials(url))
    run = DrafterRun(store, run_id, Unsent.of(root, run_id))
    yield run
    try:
        run.flush()
    except TransientError as error:
        print(f"specdec: {error}: this reading is sent with the next one", flush=True)


def _run_id(store: Store, promise: Promise, url: str) -> str:
    tags = {"specdec.watch.url": url, "specdec.model": promise.model, "specdec.version": promise.version}
    quoted = {key: value.replace("'", "''") for key, value in tags.items()}
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in quoted.items())
    with speaking(store.location):
        found = store.client.search_runs([store.experiment_id], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        name = f"watch {promise.model} {promise.version}"
        made = store.client.create_run(store.experiment_id, tags=tags, run_name=name)
    return str(made.info.run_id)
