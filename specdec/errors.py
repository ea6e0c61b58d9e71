"""What can go wrong, as one line a person can act on.

Every error that a user can cause or meet is a `SpecdecError`. Its message names the thing, where it is, and
what to do. It is caught once, at the command line (`specdec.cli`) or in a stage's door (`stages.run`), and
printed without a traceback. `exit_code` tells callers whether trying again can help.
"""

import errno
import json
import os
import sys
from pathlib import Path

EX_TEMPFAIL = 75  # sysexits.h: the same command may work later
LAUNCHER = "SPECDEC_LAUNCHER"  # in the environment of processes that we started: where they leave their errors


class SpecdecError(Exception):
    """A failure with a message for people; retrying alone does not help."""

    exit_code = 2


class ConfigError(SpecdecError):
    """A setting that is unknown, has the wrong type or an impossible value."""


class DataError(SpecdecError):
    """A dataset, repository or row that cannot be used."""


class ModelError(SpecdecError):
    """A base model, tokenizer or drafter that cannot be used, or that does not fit the other."""


class TrackingError(SpecdecError):
    """The MLflow tracking server or registry refused, or does not hold what it should."""


class TransientError(SpecdecError):
    """A failure that may pass: a network, a server that died. Trying again can help."""

    exit_code = EX_TEMPFAIL


class ServerError(TransientError):
    """A model server that did not start, died or stopped answering."""


class ServerEnded(ServerError):
    """A model server of ours whose process has ended: connecting to it again is of no use."""


class RequestRefused(SpecdecError):
    """A model server that answers, and says no for good (wrong key, unknown model, bad request)."""


def disk_is_full(error: Exception) -> bool:
    """Not every library raises an OSError for it: safetensors and torch have errors of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    told = ("No space left", "os error 28", "PytorchStreamWriter", "unexpected pos")
    return any(sign in str(error) for sign in told)


def tell_error(message: str, exit_code: int) -> None:
    """The one line on stderr. One of several processes of ours leaves it to the process that started them."""
    if folder := os.environ.get(LAUNCHER):
        try:
            aside = Path(folder, f"{os.getpid()}.part")
            aside.write_text(json.dumps([message, exit_code]))
            aside.replace(aside.with_suffix(".told"))
            return
        except OSError:
            pass  # nobody else can tell it then
    print(f"specdec: error: {message}", file=sys.stderr, flush=True)


def told_by(pid: int, folder: str) -> tuple[str, int] | None:
    """What that process left in `folder` with `tell_error`: (message, exit code)."""
    told = Path(folder, f"{pid}.told")
    if not told.exists():
        return None
    message, exit_code = json.loads(told.read_text())
    return message, exit_code
