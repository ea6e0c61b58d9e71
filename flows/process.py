"""Commands whose output is read line by line and that leave no process behind, however this process ends."""

import codecs
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

GRACE = 20.0  # seconds from SIGTERM to SIGKILL; Prefect gives a cancelled flow 30
_GUARD = Path(__file__).with_name("guard.py")
_BAR_SECONDS = 2.0  # a progress bar that is redrawn in place is passed on at most this often

# A carriage return that comes last may be the first half of a Windows line end: it waits for the next piece.
_LINE_END = re.compile(r"(\r\n|\n|\r(?=.))", re.DOTALL)

Process = subprocess.Popen[bytes]


class Stopped(Exception):
    """No command is started any more: the flow is ending."""


class Commands:
    """The commands of one flow.

    Each has its own session, under a guard (`flows/guard.py`) that ends it and everything that it started
    when `run` is left by an exception, on `stop`, or when this process dies.
    """

    def __init__(self) -> None:
        self._running: set[Process] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, command: list[str], forward: Callable[[str], None], cwd: Path) -> int:
        """Runs `command`, calls `forward` for every line of its output, and returns its exit code."""
        process = self._start(command, cwd)
        assert process.stdout is not None
        try:
            for line in _lines(process.stdout):
                forward(line)
            return process.wait()
        finally:
            process.stdout.close()  # or a command that still writes would wait for us
            _end([process])
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Ends every command that runs (in whichever thread), and lets none begin."""
        with self._lock:
            self._stopped = True
            processes = list(self._running)
        _end(processes)

    def _start(self, command: list[str], cwd: Path) -> Process:
        guarded = [sys.executable, str(_GUARD), str(GRACE), *command]
        with self._lock:
            if self._stopped:
                raise Stopped("the flow is ending")
            process = subprocess.Popen(
                guarded,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
            self._running.add(process)
        return process


@contextlib.contextmanager
def looking_after(pids: list[int]) -> Iterator[None]:
    """While the block runs, a guard ends these processes should this one die (`kill -9` included)."""
    command = [sys.executable, str(_GUARD), "5", "--watch"]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None
    try:
        guard.stdin.write("".join(f"{pid}\n" for pid in pids).encode())
        guard.stdin.flush()
        yield
    finally:
        guard.kill()  # before the pipe closes: nothing is to be ended now
        guard.wait()
        guard.stdin.close()


def _end(processes: list[Process]) -> None:
    """Closing its input is the word for a guard, which needs at most the grace to carry it out."""
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Whole lines as they come. Of a bar that is redrawn (they end with a carriage return) only some."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, last_bar = "", 0.0
    while chunk := stream.read(65536):
        *parts, rest = re.split(_LINE_END, rest + decoder.decode(chunk))
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            if end == "\r":
                if time.monotonic() - last_bar < _BAR_SECONDS:
                    continue
                last_bar = time.monotonic()
            if text.strip():
                yield text.rstrip()
    if rest.strip():
        yield rest.rstrip()
