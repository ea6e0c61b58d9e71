"""One run at a time in one folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from specdec.errors import TransientError
from specdec.io import write_text


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Holds `.specdec/run.lock` while the block runs; `.specdec/run.pid` says who does.

    Raises TransientError where another process holds it. The system drops the lock with its process, `kill -9`
    included; a pid that was left behind then means nothing.
    """
    folder = root / ".specdec"
    folder.mkdir(exist_ok=True)
    pid = folder / "run.pid"
    try:
        held = FileLock(folder / "run.lock").acquire(timeout=0)
    except Timeout:
        raise TransientError(
            f"another run is going on in this folder (pid {_read(pid)}): wait for it, or stop it"
        ) from None
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
