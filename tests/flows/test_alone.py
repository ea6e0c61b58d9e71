"""One run at a time in a folder, whoever starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.alone import Busy, alone
from tests.flows.conftest import Toy
from tests.flows.test_pipeline import stage
from tests.tracking.example import REPOSITORY

TRY = "from pathlib import Path; from flows.alone import alone\nwith alone(Path('.')): print('mine')"


def another_process(root: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", TRY], cwd=root, env=environment, capture_output=True, text=True)


def test_a_run_within_a_run_is_the_same_one(tmp_path: Path) -> None:
    """A retraining holds the folder, and so does the pipeline that it calls."""
    pid = tmp_path / ".specdec/run.pid"
    with alone(tmp_path):
        with alone(tmp_path):
            assert pid.read_text() == f"{os.getpid()}\n"
        assert pid.exists(), "the inner one gives nothing back"
        assert f"Busy: another run is going on in this folder (pid {os.getpid()})" in another_process(tmp_path).stderr
    assert not pid.exists()
    assert another_process(tmp_path).stdout == "mine\n"


def test_a_failure_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(Busy, match="inside"), alone(tmp_path), alone(tmp_path):
        raise Busy("inside")
    assert another_process(tmp_path).stdout == "mine\n"


def test_a_scheduled_run_beside_another_one_ends_as_skipped(toy: Toy) -> None:
    """`make run` says it before its flow begins; a deployment's run is the flow alone."""
    toy.stages(first=stage("first"))
    scheduled = "from flows.pipeline import pipeline; s = pipeline(return_state=True); print(s.name, s.message)"
    with alone(toy.root):
        done = subprocess.run(
            [sys.executable, "-c", scheduled], cwd=toy.root, env=toy.environment, capture_output=True, text=True
        )
    told = f"another run is going on in this folder (pid {os.getpid()}): wait for it, or stop it"
    assert done.stdout.splitlines()[-1] == f"Skipped {told}", done.stderr
    assert "Traceback" not in done.stderr
    assert toy.lines("order") == []
