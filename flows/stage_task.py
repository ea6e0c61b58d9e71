"""One stage as a Prefect task: `dvc repro --single-item STAGE`, with its output in the task's log."""

import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.graph import Stage, is_changed
from flows.process import Commands
from flows.turns import Turns
from specdec.errors import EX_TEMPFAIL, SpecdecError

_KEPT = 200  # lines of output that a failure is explained from
_SHOWN = 10
_ERROR = "specdec: error: "
# `stages.say` counts seconds for those who run a stage by hand; the log has the time of day already.
_CLOCK = re.compile(r"^\[ *\d+\.\d+s\] ")
_HINTS = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "Use `dvc push`",
    "dvc config core",
)


class StageFailed(SpecdecError):
    """A stage that ended with an error. `stage` names it, `code` is the exit code of its command."""

    def __init__(self, stage: str, code: int, lines: list[str]) -> None:
        self.stage, self.code = stage, code
        self.exit_code = code if code in (EX_TEMPFAIL, 130) else SpecdecError.exit_code
        super().__init__(f"{stage} failed (exit code {code}): {explanation(lines)}")


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's question whether to try again: only what the stage itself calls temporary."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.code == EX_TEMPFAIL


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=may_pass)
def run_stage(stage: Stage, root: Path, commands: Commands, turns: Turns) -> bool:
    """Brings one stage up to date; says whether it had to run. Raises StageFailed."""
    logger = get_run_logger()
    with turns.take(stage.exclusive):
        if not is_changed(root, stage.name):
            logger.info("%s: up to date", stage.name)
            return False
        reproduce(stage.name, root, commands, logger.info)
        return True


def reproduce(stage: str, root: Path, commands: Commands, log: Callable[[str], None]) -> None:
    """Runs the stage through DVC, whatever its state. Raises StageFailed."""
    output: deque[str] = deque(maxlen=_KEPT)

    def forward(line: str) -> None:
        line = _CLOCK.sub("", line)
        output.append(line)
        if not line.strip().startswith(_HINTS):
            log(line)

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    code = commands.run(command, forward, root)
    if code != 0:
        lines = list(output)
        raise StageFailed(stage, stage_code(lines, code), lines)


def stage_code(lines: list[str], code: int) -> int:
    """The exit code of the stage's command, which DVC only tells in words; DVC's own code without them."""
    told = [int(m[1]) for line in lines if (m := re.search(r"exited with (-?\d+)$", line.strip()))]
    return told[-1] if told else code


def explanation(lines: list[str]) -> str:
    """The stage's own error, as it printed it; without one, the last lines of the output."""
    ours = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    starts = [i for i, line in enumerate(ours) if line.startswith(_ERROR)]
    if starts:
        return "\n".join([ours[starts[-1]].removeprefix(_ERROR), *ours[starts[-1] + 1 :]])
    return "\n  ".join(["its last lines were", *(lines[-_SHOWN:] or ["(none)"])])
