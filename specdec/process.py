"""Processes that we started, and their parent."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """This process gets SIGTERM when its parent ends, however that happens. Linux only; nothing elsewhere."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has just ended
        os.kill(os.getpid(), signal.SIGTERM)
