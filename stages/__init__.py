"""The door of every DVC stage: `python -m stages.<stage>`.

A stage reads its settings and inputs, calls `specdec`, and writes outputs and metrics. `run` turns our own
errors into one line and an exit code (`specdec.errors`), and SIGTERM into an exception, so that servers are
stopped and MLflow runs are closed on the way out.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from specdec.config import Params
from specdec.errors import ConfigError, SpecdecError, disk_is_full, tell_error

EMBEDDED_DATA = Path(".specdec/python-docs")  # the published repository of the embedded default
# Read when the libraries are imported, which is after this: bars drawn into a log are noise.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_STARTED = time.monotonic()


class Terminated(BaseException):
    """SIGTERM, as an exception: `finally` and context managers run."""


def run(stage: Callable[[], None]) -> None:
    """Runs one stage and exits: 0, or the error's exit code after one line on stderr."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        stage()
    except SpecdecError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, Terminated):
        _fail("interrupted: run the same command again, it goes on from here", 130)
    except Exception as error:
        if not disk_is_full(error):
            raise
        _fail(f"the disk is full ({os.getcwd()}): free some space and run the same command again", 2)


def drafter_name(params: Params) -> str:
    """The drafter that the stage's command line names. Raises ConfigError when params.yaml has none such."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in params.drafters:
        raise ConfigError(f"name one drafter of params.yaml: {', '.join(params.drafters)} (not {name!r})")
    return name


def training_run(name: str) -> str | None:
    """The MLflow run that trained this drafter (not an input: it changes no result)."""
    file = Path("metrics/train") / f"{name}.json"
    return json.loads(file.read_text()).get("mlflow_run") if file.exists() else None


def say(line: str) -> None:
    """One plain progress line, with the seconds since the stage began."""
    print(f"[{time.monotonic() - _STARTED:6.1f}s] {line}", flush=True)


def _fail(message: str, code: int) -> None:
    tell_error(message, code)
    sys.exit(code)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
