"""Which process a run belongs to, so that one that was killed can be told from one that works."""

import os
import platform
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

EXECUTION = "SPECDEC_EXECUTION"
_ALONE = uuid.uuid4().hex


@dataclass(frozen=True)
class Owner:
    """A process, as `host:pid:start` (start in whole seconds since the epoch: a pid alone comes again)."""

    host: str
    pid: int
    started: int

    @classmethod
    def of(cls, process: psutil.Process) -> "Owner":
        return cls(platform.node(), process.pid, int(process.create_time()))

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        host, _, rest = text.partition(":")
        pid, _, started = rest.partition(":")
        if not (pid.isdigit() and started.isdigit()):
            return None
        return cls(host, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    def gone(self) -> bool:
        """Whether it is sure that the process ended; False for one on another machine."""
        if self.host != platform.node():
            return False
        try:
            process = psutil.Process(self.pid)
            # Within a second: the clock that start times are computed from is adjusted now and then.
            return abs(process.create_time() - self.started) > 2 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True


def this_process() -> Owner:
    """The owner of what this process opens."""
    return Owner.of(psutil.Process())


def execution_key() -> str:
    """What the stages of one pipeline execution share.

    The flow sets `SPECDEC_EXECUTION`; for `dvc repro` by hand it is the dvc process above us; a stage that is
    run alone is an execution of its own.
    """
    if key := os.environ.get(EXECUTION):
        return key
    dvc = _ancestor_dvc()
    return f"dvc:{Owner.of(dvc)}" if dvc else _ALONE


def _ancestor_dvc() -> psutil.Process | None:
    for process in psutil.Process().parents():
        try:
            if _is_dvc(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def _is_dvc(command: list[str]) -> bool:
    """`dvc ...`, `python .../bin/dvc ...` or `python -m dvc ...`."""
    names = [Path(word).name for word in command[:2]]
    return "dvc" in names or command[1:3] == ["-m", "dvc"]
