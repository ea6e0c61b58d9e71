"""Defaults for Prefect, DVC and the stages, as environment variables."""

import os
import sys
from pathlib import Path

from specdec.tracking import project_root

_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    # The temporary server needs longer than Prefect's 20 seconds on a busy machine with two cores.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Who holds a concurrency slot is kept in memory otherwise: a server that is killed would never give it back.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # A stage's lines are shown as they come.
    "PYTHONUNBUFFERED": "1",
}


def set_defaults() -> None:
    """What is set already stays. `python` in a stage's command becomes the one that runs the flow."""
    if "PREFECT_HOME" not in os.environ:
        # A run leaves nothing in the user's home, and two checkouts do not share a database.
        home = project_root() / ".specdec" / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        os.environ["PREFECT_HOME"] = str(home)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    here = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if path[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, *path])
