"""What a machine that serves does when the champion changed: the command in `SPECDEC_ON_CHAMPION`.

An automation (`triggers` in prefect.yaml) runs this flow on every `specdec.champion.changed`. The command finds the
version in `SPECDEC_CHAMPION` (`models:/NAME/VERSION`) and `SPECDEC_PREVIOUS`; no shell reads it: `sh -c '...'` does.
"""

import os
import shlex

from prefect import flow, get_run_logger

from flows.process import Commands
from specdec.errors import TransientError
from specdec.tracking import project_root

COMMAND = "SPECDEC_ON_CHAMPION"


@flow(name="reload", persist_result=False)
def reload(model: str, version: str, previous: str | None = None, by: str = "") -> None:
    """Raises TransientError where the command fails."""
    log = get_run_logger().info
    log(f"version {version} of {model} is the champion (by {by or 'somebody'})")
    command = shlex.split(os.environ.get(COMMAND, ""))
    if not command:
        log(f"nothing is reloaded: {COMMAND} names no command")
        return
    os.environ |= {"SPECDEC_CHAMPION": f"models:/{model}/{version}", "SPECDEC_PREVIOUS": previous or ""}
    commands = Commands()
    try:
        code = commands.run(command, log, project_root())
    finally:
        commands.stop()
    if code != 0:
        raise TransientError(f"{COMMAND} failed (exit code {code}): {shlex.join(command)}")
