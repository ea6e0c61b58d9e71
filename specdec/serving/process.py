"""A server's process: started behind `guard.py`, its output in a log file, gone when we leave."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from specdec.errors import ServerEnded

GUARD = Path(__file__).with_name("guard.py")
GRACE_SECONDS = 10.0
TAIL_LINES, TAIL_BYTES = 8, 8192


class ServerProcess:
    """A server that we started. `log` holds all that it writes."""

    def __init__(self, guard: "subprocess.Popen[bytes]", log: Path) -> None:
        self._guard, self.log = guard, log

    def exit_code(self, patience: float = 0.0) -> int | None:
        """None as long as the server runs. Waits for `patience` seconds whether it ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout=patience)
        return self._guard.poll()

    def tail(self) -> str:
        """The log's last lines, for an error message."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines if line.strip()[:1] not in ("", "^", "~"))[-2000:]

    def check(self, what: str) -> None:
        """Raises ServerEnded, with the log's last lines, if the server has ended."""
        if (code := self.exit_code()) is not None:
            raise ServerEnded(f"the server ended (exit code {code}) {what}; {self.last_words()}")

    def last_words(self) -> str:
        """Where the log is, and how it ends."""
        lines = self.tail().splitlines()[-TAIL_LINES:]
        return f"its log {self.log} ends:\n" + "\n".join(lines) if lines else f"its log {self.log} is empty"


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, grace: float = GRACE_SECONDS
) -> Iterator[ServerProcess]:
    """Runs `command` while the block lasts, in a session of its own; nothing of it is left afterwards."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():  # the log of the run before may say why there is a run after it
        log.replace(log.with_name(f"{log.name}.old"))
    with log.open("wb") as output:
        guard = _guarded(command, environment, grace, output)
    try:
        yield ServerProcess(guard, log)
    finally:
        _stop(guard, grace)


def run_in_front(command: Sequence[str], environment: Mapping[str, str], grace: float = GRACE_SECONDS) -> int:
    """Runs `command` to its end, what it says going where ours goes; returns its exit code. Whatever ends the wait,
    as Ctrl-C does, ends the command too: nothing of it is left."""
    guard = _guarded(command, environment, grace, None)
    try:
        return guard.wait()
    finally:
        _stop(guard, grace)


def _guarded(
    command: Sequence[str], environment: Mapping[str, str], grace: float, output: IO[bytes] | None
) -> "subprocess.Popen[bytes]":
    """output: for both of its streams; None leaves them ours."""
    return subprocess.Popen(
        [sys.executable, "-I", str(GUARD), str(grace), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )


def _stop(guard: "subprocess.Popen[bytes]", grace: float) -> None:
    """Closing the pipe is the word to stop; the guard does the rest."""
    assert guard.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.close()
    try:
        guard.wait(timeout=grace + 10)
    except subprocess.TimeoutExpired:
        guard.kill()  # the kernel then ends the server's first process too (guard.py)
        guard.wait()
