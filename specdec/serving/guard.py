"""Runs a server so that it never outlives us: `python guard.py GRACE_SECONDS COMMAND...`, standard library
only.

The parent holds the other end of our standard input and writes nothing. When it closes (on purpose, or
because the parent was killed, even with SIGKILL) we end the server's whole process group: SIGTERM, then
SIGKILL after the grace. On Linux the server's first process also gets SIGKILL from the kernel should we be
killed ourselves. Exits with the server's exit code.
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

PR_SET_PDEATHSIG = 1


def main(grace: float, command: list[str]) -> int:
    """Runs `command` to its end, or to our parent's."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # In a thread: the main one holds the lock of `wait`, so that `poll` in a handler would see nothing.
        signal.signal(number, lambda *_: _in_background(_end, server, grace))
    _in_background(_wait_for_parent, server, grace)
    code = server.wait()
    _signal(server.pid, signal.SIGKILL)  # workers that a dying server left behind
    return code if code >= 0 else 128 - code


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _wait_for_parent(server: "subprocess.Popen[bytes]", grace: float) -> None:
    while os.read(0, 1):
        pass
    _end(server, grace)


def _end(server: "subprocess.Popen[bytes]", grace: float) -> None:
    _signal(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(server.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
