"""Runs a command, and ends its whole family when it ends, when told to, or when whoever started this is gone.

    python guard.py GRACE COMMAND...     runs COMMAND; exits with its code
    python guard.py GRACE --watch        starts nothing; looks after the pids that it reads, one a line

Standard input is a pipe that the starter keeps open. Even `kill -9` closes it, so no stage goes on writing
when its flow is dead. SIGTERM asks for the same. A process gets SIGTERM first, and SIGKILL after GRACE
seconds. On Linux orphans are adopted, so a server that left its process group is found too.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import psutil

_PR_SET_CHILD_SUBREAPER = 36
Family = Callable[[], list[psutil.Process]]


class Stop(BaseException):
    """Told to end everything."""


def main() -> None:
    grace, command = float(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, _stop)
    if command == ["--watch"]:
        wards = _read_wards()
        _end(lambda: [p for p in wards if _is_alive(p)], grace)
        return
    _adopt_orphans()
    sys.exit(_run(command, grace))


def _run(command: list[str], grace: float) -> int:
    code = -signal.SIGTERM
    try:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
        code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Stop:
        pass
    _end(lambda: psutil.Process().children(recursive=True), grace)
    return code if code >= 0 else 128 - code


def _end(family: Family, grace: float) -> None:
    """SIGTERM to each member, once; SIGKILL to all that are left after `grace` seconds."""
    told: set[psutil.Process] = set()
    deadline = time.monotonic() + grace
    while members := family():
        late = time.monotonic() > deadline
        for process in members:
            with contextlib.suppress(psutil.Error):
                if late:
                    process.kill()
                elif process not in told:
                    process.terminate()
            told.add(process)
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    """Ended children stay in the process table until somebody asks."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _read_wards() -> list[psutil.Process]:
    wards = []
    with contextlib.suppress(Stop):
        for line in sys.stdin:  # ends with the starter
            with contextlib.suppress(psutil.Error, ValueError):
                wards.append(psutil.Process(int(line)))
    return wards


def _is_alive(process: psutil.Process) -> bool:
    """Without an init that reaps (in many containers) an ended process stays as a zombie for good."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _stop_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stop


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    main()
