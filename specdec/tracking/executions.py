"""Runs and their families: one parent a pipeline execution, one child a drafter.

The parent is found by the execution's key (`specdec.tracking.owner`); whoever comes first opens it. Under a
flow it stays RUNNING until the flow ends. By hand nobody can know which stage is the last, so it is RUNNING
only while a stage writes. What a killed process left RUNNING is closed as KILLED when the next one begins.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.config import Params
from specdec.errors import TransientError
from specdec.tracking.lineage import lineage
from specdec.tracking.owner import EXECUTION, Owner, execution_key, this_process
from specdec.tracking.runs import DrafterRun
from specdec.tracking.store import Store, connect, one_try, project_root, speaking
from specdec.tracking.unsent import Unsent

KEY = "specdec.execution"
OWNER = "specdec.owner"
PROJECT = "specdec.project"
DRAFTER = "specdec.drafter"
_PARENT = "mlflow.parentRunId"


@contextlib.contextmanager
def execution_run(params: Params, root: Path | None = None) -> Iterator[str]:
    """The parent run of this execution, for whoever drives it as a whole (the flow); yields its id.

    FINISHED when the block ends, FAILED or KILLED when it raises.
    """
    root = root or project_root()
    store = connect(root)
    parent = _open_parent(store, params, root)
    with _closing(store, DrafterRun(store, parent)):
        yield parent


@contextlib.contextmanager
def drafter_run(drafter: str, params: Params, previous: str | None) -> Iterator[DrafterRun]:
    """The run of one drafter, below this execution's parent.

    previous: the run to go on with (a resumed training; the evaluation of what was trained). If this store
    does not hold it, a new one is opened, and said. One that was interrupted moves to this execution; one
    that is complete stays where it was, and the parent points to it by the tag `specdec.run.<drafter>`.
    FINISHED when the block ends, FAILED when it raises an Exception, KILLED for anything else that ends it.
    """
    root = project_root()
    store = connect(root)
    with _parent(store, params, root) as parent:
        run = _resumed(store, drafter, previous, parent) or _child(store, drafter, parent)
        with _closing(store, run):
            origin = lineage(root)  # known better now than when the parent was opened
            DrafterRun(store, parent).set_tags({f"specdec.run.{drafter}": run.run_id, **origin})
            run.set_tags({KEY: execution_key(), OWNER: str(this_process()), **origin})
            run.log_params({"drafter": drafter, **params.drafters[drafter].model_dump()})
            yield run


def close_abandoned(store: Store, root: Path) -> int:
    """Closes, as KILLED, the runs of this project whose process is gone; returns how many."""
    abandoned = [run for run in _search(store, {PROJECT: str(root)}, "RUNNING") if _is_abandoned(run)]
    for run in abandoned:
        store.client.set_terminated(run.info.run_id, status="KILLED")
    return len(abandoned)


def record_finished(
    drafter: str, params: Params, previous: str | None, figures: Mapping[str, Any], folder: Path, place: str
) -> None:
    """Figures and files of work that is done, to the drafter's run. A server that is away costs none of it.

    What cannot be sent now goes when the run is opened next, which registration does, and it sends the files, too.
    previous: as for `drafter_run`; where this store does not have it, registration sends all that `metrics/` holds.
    """
    taken = False  # by the run, which keeps what it cannot send
    try:
        with drafter_run(drafter, params, previous) as run:
            run.log_metrics(figures)
            taken = True
            run.log_artifacts(folder, place)
    except TransientError as error:
        if previous is not None and not taken:
            Unsent.of(project_root(), previous).add(figures)
        print(f"specdec: {error}; the figures are kept, and sent with the registration", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _parent(store: Store, params: Params, root: Path) -> Iterator[str]:
    parent = _open_parent(store, params, root)
    if os.environ.get(EXECUTION):  # its driver closes it
        yield parent
        return
    with _closing(store, DrafterRun(store, parent)):
        yield parent


def _open_parent(store: Store, params: Params, root: Path) -> str:
    """Finds or makes the parent. Under a lock: stages of one execution may start at the same moment."""
    key = execution_key()
    folder = root / ".specdec"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "execution.lock"), speaking(store.location):
        found = _search(store, {KEY: key, "specdec.kind": "execution"})
        if found:
            run_id = str(found[0].info.run_id)
            if found[0].info.status != "RUNNING":
                store.client.update_run(run_id, status="RUNNING")
                store.client.set_tag(run_id, OWNER, str(this_process()))
            return run_id
        closed = close_abandoned(store, root)
        if closed:
            print(f"closed {closed} MLflow runs that a killed execution left open", flush=True)
        return _new_parent(store, params, root, key)


def _new_parent(store: Store, params: Params, root: Path, key: str) -> str:
    tags = {
        KEY: key,
        OWNER: str(this_process()),
        PROJECT: str(root),
        "specdec.kind": "execution",
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
        "mlflow.user": _user(),
    }
    created = store.client.create_run(store.experiment_id, tags=tags, run_name=_free_name(store, "pipeline"))
    run = DrafterRun(store, str(created.info.run_id))
    run.set_tags(lineage(root))
    run.log_params(params.model_dump(by_alias=True))
    return run.run_id


def _child(store: Store, drafter: str, parent: str) -> DrafterRun:
    tags = {
        _PARENT: parent,
        DRAFTER: drafter,
        KEY: execution_key(),
        OWNER: str(this_process()),
        PROJECT: str(project_root()),
        "specdec.kind": "drafter",
        "mlflow.user": _user(),
    }
    with speaking(store.location):
        created = store.client.create_run(store.experiment_id, tags=tags, run_name=drafter)
    return _run(store, str(created.info.run_id))


def _resumed(store: Store, drafter: str, previous: str | None, parent: str) -> DrafterRun | None:
    """The previous run, open again; None when there is none here to go on with."""
    if previous is None:
        return None
    found = find_run(store, previous)
    if found is None or found.data.tags.get(DRAFTER) != drafter:
        print(f"no MLflow run {previous} of {drafter} in {store.location.shown}: opening a new one", flush=True)
        return None
    with speaking(store.location):
        if found.info.status != "FINISHED":
            store.client.set_tag(previous, _PARENT, parent)
        store.client.update_run(previous, status="RUNNING")
    return _run(store, previous)


def _run(store: Store, run_id: str) -> DrafterRun:
    return DrafterRun(store, run_id, Unsent.of(project_root(), run_id))


def find_run(store: Store, run_id: str) -> Any | None:
    """The MLflow run, or None when this store does not hold it (or holds it as deleted)."""
    from mlflow.exceptions import MlflowException

    with speaking(store.location):
        try:
            run = store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return run if run.info.lifecycle_stage == "active" else None


@contextlib.contextmanager
def _closing(store: Store, run: DrafterRun) -> Iterator[None]:
    """Ends the run with the status that tells how the block ended."""
    try:
        yield
        run.flush()
    except BaseException as error:
        # The figures matter less now than the error that is on its way.
        with one_try():
            with contextlib.suppress(Exception):
                run.flush()
            with contextlib.suppress(Exception):
                store.client.set_terminated(run.run_id, status=_status(error))
        raise
    with speaking(store.location):
        store.client.set_terminated(run.run_id, status="FINISHED")


def _status(error: BaseException) -> str:
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception | SystemExit) else "KILLED"


def _search(store: Store, tags: dict[str, str], status: str | None = None) -> list[Any]:
    conditions = [f"tags.`{name}` = '{_quoted(value)}'" for name, value in tags.items()]
    if status:
        conditions.append(f"attributes.status = '{status}'")
    return list(store.client.search_runs([store.experiment_id], " and ".join(conditions)))


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def _is_abandoned(run: Any) -> bool:
    owner = Owner.parse(run.data.tags.get(OWNER, ""))
    return owner is not None and owner.gone()


def _free_name(store: Store, stem: str) -> str:
    """`pipeline-7`: the number of executions so far, for people; the key is what counts."""
    runs = store.client.search_runs([store.experiment_id], "tags.`specdec.kind` = 'execution'", max_results=1)
    last = runs[0].info.run_name.rpartition("-")[2] if runs else "0"
    return f"{stem}-{int(last) + 1 if last.isdigit() else 1}"


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
