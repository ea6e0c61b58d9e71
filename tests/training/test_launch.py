"""Several processes of one training: how it ends when one of them fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from specdec.errors import LAUNCHER, ConfigError, tell_error, told_by
from specdec.training.launch import launch_processes

SCRIPT = Path(__file__).with_name("failing_process.py")
ROOT = SCRIPT.parents[2]


def started(kind: str, *further: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), kind, *further]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(kind: str) -> tuple[int, str]:
    """(exit code, what was told on stderr)."""
    with started(kind) as process:
        _, told = process.communicate(timeout=50)
    return process.returncode, told


def both_waiting(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two processes that it has started, once both of them are there."""
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["waits\n"] * 2
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    return children


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "code", "line"),
    [
        ("settings", 2, "specdec: error: aux_layers [9]\n"),
        ("server", 75, "specdec: error: gone\n"),
        (
            "killed",
            137,
            "specdec: error: process 1 was ended by SIGKILL (out of memory?): run the same command again\n",
        ),
    ],
)
def test_the_first_failure_is_told_once(kind: str, code: int, line: str) -> None:
    assert ended(kind) == (code, line)


@pytest.mark.soak
def test_a_bug_keeps_its_traceback() -> None:
    code, told = ended("bug")
    assert code == 1
    assert "RuntimeError: a bug" in told
    assert told.endswith("RuntimeError: a bug\n")


@pytest.mark.soak
def test_all_of_them_end_in_peace() -> None:
    """And they are given the very words of the command line, in which torch would substitute."""
    with started("fine", "a$$b", "${local_rank}") as process:
        out, told = process.communicate(timeout=50)
    assert (process.returncode, told) == (0, "")
    given = "['a$$b', '${local_rank}']"
    assert sorted(out.splitlines()) == [f"process 0 trains {given}", f"process 1 trains {given}"]


@pytest.mark.soak
def test_told_to_end_it_takes_them_along() -> None:
    with started("waiting") as process:
        children = both_waiting(process)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=50)
    assert process.returncode == 130
    assert told.splitlines() == [
        "specdec: told to end: training ends behind its step, with a checkpoint; once more ends it at once",
        "specdec: error: interrupted: run the same command again, it goes on from here",
    ]
    assert not any(child.is_running() for child in children)


@pytest.mark.soak
def test_killed_it_takes_them_along() -> None:
    with started("waiting") as process:
        children = both_waiting(process)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        process.communicate()
    assert not alive


def test_killed_before_they_have_begun_it_takes_them_along() -> None:
    """A process that is still importing when its launcher dies has another parent when it first looks."""
    code = (
        "import time; from specdec.training.launch import launch_processes; launch_processes([], 2); time.sleep(60)"
    )
    environment = {**os.environ, "LOCAL_RANK": "0", "SPECDEC_LAUNCHER_PID": str(os.getpid() + 1)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM


def test_an_error_that_cannot_be_left_behind_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LAUNCHER, str(tmp_path / "gone"))
    tell_error("no room", 2)
    assert capsys.readouterr().err == "specdec: error: no room\n"
    monkeypatch.setenv(LAUNCHER, str(tmp_path))
    tell_error("no room", 2)
    assert capsys.readouterr().err == ""
    assert told_by(os.getpid(), str(tmp_path)) == ("no room", 2)


def test_nobody_else_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for one process, and not by a process that was started itself."""
    for one in (None, 1):
        launch_processes(["nothing.py"], one)
    monkeypatch.setenv("LOCAL_RANK", "0")
    launch_processes(["nothing.py"], 4)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="SPECDEC_PROCESSES is 4, and this machine has 2 GPUs"):
        launch_processes(["nothing.py"], 4)
