"""Parents, children, resumed runs, and what killed processes leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from specdec.tracking import drafter_run, execution_run
from specdec.tracking.executions import close_abandoned
from specdec.tracking.owner import Owner, this_process
from specdec.tracking.store import Store
from tests.tracking.example import REPOSITORY, params, settings, write_json


def run_of(store: Store, run_id: str) -> Any:
    return store.client.get_run(run_id)


def parent_of(store: Store, run_id: str) -> Any:
    return run_of(store, run_of(store, run_id).data.tags["mlflow.parentRunId"])


def test_the_stages_of_one_execution_share_a_parent(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECDEC_EXECUTION", "first")
    with execution_run(params()) as parent:
        with drafter_run("one", params(), None) as one:
            assert run_of(store, one.run_id).info.status == "RUNNING"
        with drafter_run("two", params(), None) as two:
            pass
        assert run_of(store, parent).info.status == "RUNNING"
    assert run_of(store, parent).info.status == "FINISHED"
    for run in (one, two):
        assert parent_of(store, run.run_id).info.run_id == parent
        assert run_of(store, run.run_id).info.status == "FINISHED"
    tags = run_of(store, parent).data.tags
    assert (tags["specdec.run.one"], tags["specdec.run.two"]) == (one.run_id, two.run_id)


def test_a_parent_holds_every_setting_and_where_it_came_from(project: Path, store: Store) -> None:
    (project / "dvc.lock").write_text(
        "stages: {clone_data: {outs: [{path: data/raw/train.jsonl, md5: abc}]},"
        " train@one: {outs: [{path: models/drafters/one, md5: def.dir}]}}"
    )
    with execution_run(params()) as parent:
        pass
    data = run_of(store, parent).data
    training = settings()["drafters"]["one"]["training"]
    assert data.params["drafters.one.training.learning_rate"] == str(training["learning_rate"])
    assert data.params["register.min_speedup"] == "1.0"
    assert data.tags["specdec.input.data/raw/train.jsonl"] == "abc"
    assert "specdec.input.models/drafters/one" not in data.tags
    assert data.tags["specdec.base.weights"] == "a" * 64
    assert data.tags["specdec.git.commit"] == "none"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError, "FAILED"),
        (KeyboardInterrupt, "KILLED"),
        (SystemExit(2), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_status_tells_how_it_ended(project: Path, store: Store, error: Any, status: str) -> None:
    seen: list[str] = []

    def stage() -> None:
        with drafter_run("one", params(), None) as run:
            seen.append(run.run_id)
            run.log_metrics({"loss": 1.0})
            raise error

    with pytest.raises(type(error) if isinstance(error, SystemExit) else error):
        stage()
    found = run_of(store, seen[0])
    assert found.info.status == status
    assert found.data.metrics["loss"] == 1.0  # what was measured before is not lost


def test_evaluation_goes_on_with_the_run_of_the_training(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with drafter_run("one", params(), None) as training:
        training.log_metrics({"loss": 2.0}, step=1)
    monkeypatch.setenv("SPECDEC_EXECUTION", "later")
    with execution_run(params()) as later, drafter_run("one", params(), training.run_id) as evaluation:
        evaluation.log_metrics({"acceptance_length": {"value": 1.8}})
    assert evaluation.run_id == training.run_id
    found = run_of(store, training.run_id)
    assert set(found.data.metrics) == {"loss", "acceptance_length/value"}
    assert found.data.tags["mlflow.parentRunId"] != later  # it was complete: it stays with its execution
    assert run_of(store, later).data.tags["specdec.run.one"] == training.run_id


def test_an_interrupted_run_moves_to_the_execution_that_goes_on_with_it(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), drafter_run("one", params(), None) as broken:
        raise KeyboardInterrupt
    monkeypatch.setenv("SPECDEC_EXECUTION", "later")
    with execution_run(params()) as later, drafter_run("one", params(), broken.run_id) as resumed:
        pass
    assert resumed.run_id == broken.run_id
    assert parent_of(store, resumed.run_id).info.run_id == later
    assert run_of(store, resumed.run_id).info.status == "FINISHED"


def test_a_run_of_another_store_or_drafter_is_not_taken(
    project: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with drafter_run("two", params(), None) as other:
        pass
    for previous in ("0" * 32, "not an id", other.run_id):
        with drafter_run("one", params(), previous) as run:
            assert run.run_id != previous
        assert f"no MLflow run {previous} of one" in capsys.readouterr().out


def test_by_hand_the_parent_is_open_only_while_a_stage_writes(project: Path, store: Store) -> None:
    with drafter_run("one", params(), None) as one:
        parent = parent_of(store, one.run_id)
        assert parent.info.status == "RUNNING"
    assert run_of(store, parent.info.run_id).info.status == "FINISHED"
    with drafter_run("two", params(), None) as two:
        assert parent_of(store, two.run_id).info.run_id == parent.info.run_id  # the same process, so the same
        assert run_of(store, parent.info.run_id).info.status == "RUNNING"


def test_a_changed_setting_of_a_resumed_run_becomes_a_tag(project: Path, store: Store) -> None:
    with drafter_run("one", params(), None) as run:
        run.log_params({"epochs": 1})
    with drafter_run("one", params(), run.run_id) as run:
        run.log_params({"epochs": 2, "new": "x"})
    data = run_of(store, run.run_id).data
    assert data.params["epochs"] == "1"
    assert data.tags["specdec.changed.epochs"] == "2"
    assert data.params["new"] == "x"


def test_figures_that_are_no_numbers_are_told_apart(project: Path, store: Store) -> None:
    with drafter_run("one", params(), None) as run:
        run.log_metrics({"a": {"b": [1, 2.5]}, "nan": float("nan"), "yes": True, "text": "x"}, step=7)
        run.log_metrics({"big": float("inf")})
    data = run_of(store, run.run_id).data
    assert data.metrics == {"a/b/0": 1.0, "a/b/1": 2.5, "yes": 1.0}
    assert data.tags["specdec.not_finite.nan"] == "nan at step 7"
    assert data.tags["specdec.not_finite.big"] == "inf"
    assert store.client.get_metric_history(run.run_id, "yes")[0].step == 7


def test_many_figures_arrive_in_order(project: Path, store: Store) -> None:
    with drafter_run("one", params(), None) as run:
        for step in range(2500):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
    history = store.client.get_metric_history(run.run_id, "loss")
    assert [m.step for m in history] == list(range(2500))


def test_artifacts_are_copied(project: Path, store: Store) -> None:
    with drafter_run("one", params(), None) as run:
        run.log_artifacts(project / "reports/one", "evaluation")
    listed = store.client.list_artifacts(run.run_id, "evaluation")
    assert [f.path for f in listed] == ["evaluation/report.html"]
    assert (project / "mlartifacts").is_dir()


KILLED = """
import os, sys
from specdec.tracking import drafter_run
from tests.tracking.example import params
with drafter_run("one", params(), None) as run:
    print(run.run_id, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_closed_at_the_next_start(project: Path, store: Store) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    run_id = process.stdout.readline().strip()
    assert close_abandoned(store, project) == 0  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert run_of(store, run_id).info.status == "RUNNING"
    with drafter_run("two", params(), None):
        pass
    assert run_of(store, run_id).info.status == "KILLED"
    assert parent_of(store, run_id).info.status == "KILLED"


def test_runs_of_others_are_left_alone(project: Path, store: Store) -> None:
    here = this_process()
    owners = {
        "alive": str(here),
        "elsewhere": f"another-machine:{here.pid}:1",
        "unknown": "?",
    }
    for owner in owners.values():
        tags = {"specdec.project": str(project), "specdec.owner": owner}
        store.client.create_run(store.experiment_id, tags=tags)
    gone = {"specdec.project": str(project / "other"), "specdec.owner": f"{here.host}:{here.pid}:1"}
    store.client.create_run(store.experiment_id, tags=gone)
    assert close_abandoned(store, project) == 0


def test_an_owner_survives_being_written() -> None:
    owner = this_process()
    assert Owner.parse(str(owner)) == owner
    assert not owner.gone()
    assert Owner(owner.host, owner.pid, owner.started - 100).gone()
    assert Owner.parse("host:x:1") is None


BY_HAND = """
stages:
  train: {cmd: python stage.py one, outs: [one]}
  evaluate: {cmd: python stage.py two, deps: [one], outs: [two]}
"""
STAGE = """
import sys
from specdec.tracking import drafter_run
from tests.tracking.example import params
with drafter_run(sys.argv[1], params(), None) as run:
    open(sys.argv[1], "w").write(run.run_id)
"""


@pytest.mark.soak
def test_stages_of_one_dvc_repro_find_each_other(project: Path, store: Store) -> None:
    (project / "dvc.yaml").write_text(BY_HAND)
    (project / "stage.py").write_text(STAGE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([*dvc, *command], env=environment, check=True)
    parents = {parent_of(store, (project / name).read_text()).info.run_id for name in ("one", "two")}
    assert len(parents) == 1
    (project / "one").unlink()
    time.sleep(1.1)  # whole seconds tell two processes with one pid apart
    subprocess.run([*dvc, "repro", "-q", "--force", "--single-item", "train"], env=environment, check=True)
    assert parent_of(store, (project / "one").read_text()).info.run_id not in parents


def test_an_own_json_that_is_broken_is_named(project: Path) -> None:
    from specdec.errors import DataError
    from specdec.tracking.lineage import read_json

    write_json(project / "x.json", [1])
    with pytest.raises(DataError, match=r"x\.json must hold a JSON object"):
        read_json(project / "x.json")
