"""Waiting is told, and only while it lasts."""

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
import time
from typing import Any

import pytest

from specdec.progress import Progress, Steps, while_waiting


def test_lines_come_while_the_block_lasts_and_stop_with_it() -> None:
    said: list[str] = []
    with while_waiting(said.append, "fetching", every=0.02):
        time.sleep(0.1)
    count = len(said)
    assert count >= 2
    assert said[0] == "fetching (0 s)"
    time.sleep(0.06)
    assert len(said) == count


def show(steps: int, say: Any) -> None:
    """Counts to `steps` with a progress, 10 ms a step."""
    done = [0]

    async def work() -> None:
        progress = Progress(say, lambda: f"{done[0]}/{steps} rows", lambda: (done[0], steps))
        with progress:
            showing = asyncio.create_task(progress.keep_showing())
            for _ in range(steps):
                await asyncio.sleep(0.01)
                done[0] += 1
            showing.cancel()

    asyncio.run(work())


def test_in_a_log_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("specdec.progress.EVERY", 0.05)
    said: list[str] = []
    show(20, said.append)
    assert 2 <= len(said) <= 6
    assert all(line.endswith("/20 rows") for line in said)
    assert capsys.readouterr().out == ""


def test_at_a_terminal_a_bar_is_drawn_and_taken_away() -> None:
    code = (
        "import tests.test_progress as t, specdec.progress as p; p.REDRAWN = 0.03; t.show(20, print); print('behind')"
    )
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while block := os.read(master, 4096):
            shown += block
    assert process.wait(10) == 0
    os.close(master)
    text = shown.decode()
    assert "━" in text
    assert "/20 rows" in text
    assert text.rindex("\x1b[2K") < text.rindex("behind"), "the bar is erased before what comes behind it"


def test_steps_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before an interruption took no time of this run."""
    clock = [0.0]
    monkeypatch.setattr(Steps, "now", lambda _self: clock[0])
    said: list[str] = []
    with Steps(said.append, 100, done=40) as steps:
        for done, seconds in ((41, 2.0), (50, 20.0), (52, 24.0), (100, 120.0)):
            clock[0] = seconds
            steps.show(done, f"step {done}")
    assert said == ["step 50, 100 s left", "step 100, 0 s left"]
