"""One run at a time in one folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from specdec.errors import TransientError
from specdec.io import write_text


class Busy(TransientError):
    """Another process runs the pipeline in this folder."""


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Holds `.specdec/run.lock` while the block runs; `.specdec/run.pid` says who does.

    Raises Busy where another process holds it; inside of a block that holds it, it changes nothing. The system drops
    the lock with its process, `kill -9` included; a pid that was left behind then means nothing.
    """
    folder = root / ".specdec"
    folder.mkdir(exist_ok=True)
    pid = folder / "run.pid"
    lock = FileLock(folder / "run.lock", is_singleton=True)
    if lock.is_locked:
        yield
        return
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"another run is going on in this folder (pid {_read(pid)}): wait for it, or stop it") from None
    with held:
        write_text(pid, f"{os.getpid()}\n")
        try:
            yield
        finally:
            pid.unlink(missing_ok=True)


def _read(pid: Path) -> str:
    try:
        return pid.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # it has just begun, or just ended
        return "unknown"
