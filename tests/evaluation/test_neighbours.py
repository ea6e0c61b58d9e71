"""The evaluation says when others took the cores that its times needed."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from specdec.evaluation.neighbours import told, watch_neighbours

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("others", "cores", "threads", "busy"),
    [
        (0.1, 2, 2, False),
        (0.3, 2, 2, True),
        (1.0, 2, 1, False),  # there was a core for each
        (1.2, 2, 1, True),
        (7.5, 16, 8, False),
        (9.0, 16, 8, True),
        (0.5, 2, 4, True),  # more threads than cores
    ],
)
def test_others_count_where_they_took_what_was_needed(others: float, cores: int, threads: int, busy: bool) -> None:
    line = told(others, cores, threads)
    assert (line is not None) == busy
    if line:
        assert f"{others:.1f} of {cores} cores" in line


def test_a_busy_machine_is_told_of() -> None:
    notes: list[str] = []
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count() or 1)]
    try:
        with watch_neighbours(CPU, notes):
            time.sleep(1.5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert len(notes) == 1
    assert "busy machine" in notes[0]


@pytest.mark.parametrize(("own", "seconds", "lines"), [(20.0, 10.0, 0), (5.0, 10.0, 1), (0.0, 0.5, 0)])
def test_own_work_is_none_of_others(own: float, seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine was busy for 20 core seconds; what is over before the kernel has counted is not told of."""
    clock = {"machine": 100.0, "own": 3.0, "now": 0.0}
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=clock["machine"], system=0.0))
    own_times = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=clock["own"], system=0.0))
    monkeypatch.setattr(psutil, "Process", lambda: own_times)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    notes: list[str] = []
    with watch_neighbours(CPU, notes):
        clock.update(machine=120.0, own=3.0 + own, now=seconds)
    assert len(notes) == lines
