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
from flows.remote import ABSENT, KEPT, REMOTE
from flows.turns import Turns
from specdec.errors import EX_TEMPFAIL, SpecdecError

Log = Callable[[str], None]
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


class NotHere(SpecdecError):
    """A stage that may not run on this machine, and that no other one has run."""

    def __init__(self, stage: str, remote: str | None) -> None:
        where = f"the remote {remote} has no run of it with these inputs" if remote else f"{REMOTE} names no remote"
        super().__init__(
            f"{stage} is not asked for here, and cannot be brought: {where}. Run it where it belongs first; "
            "or, as its kind never travels (an output that git holds: compare, register), name it too"
        )


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Prefect's question whether to try again: only what the stage itself calls temporary."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.code == EX_TEMPFAIL


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=may_pass)
def run_stage(stage: Stage, root: Path, commands: Commands, turns: Turns, remote: str | None) -> bool:
    """Brings one stage up to date; says whether it had to run. Raises StageFailed, NotHere."""
    with turns.take(stage.exclusive):
        return bring_or_run(stage, root, commands, remote, get_run_logger().info)


def bring_or_run(stage: Stage, root: Path, commands: Commands, remote: str | None, log: Log) -> bool:
    """With a remote: what another machine has run is brought from there, what is this one's is sent there."""
    changed = is_changed(root, stage.name)
    runs = changed and not (remote and bring(stage.name, root, commands, log))
    if not changed:
        log(f"{stage.name}: up to date")
    if runs and not stage.here:
        raise NotHere(stage.name, remote)
    if runs:
        reproduce(stage.name, root, commands, log)
    if remote and stage.here:
        travel("send", stage.name, root, commands, log)
    return runs


def bring(stage: str, root: Path, commands: Commands, log: Log) -> bool:
    """Says whether the remote knew it, or DVC had what `dvc.lock` names. Raises StageFailed."""
    code = travel("fetch", stage, root, commands, log)
    if code == ABSENT:
        return False
    if is_changed(root, stage):
        reproduce(stage, root, commands, log)  # DVC restores it from its cache
    log(f"{stage}: {'restored from the cache' if code == KEPT else 'brought from the remote'}")
    return True


def reproduce(stage: str, root: Path, commands: Commands, log: Log) -> None:
    """Runs the stage through DVC, whatever its state. Raises StageFailed."""
    _run(stage, ["dvc", "--wait-for-lock", "repro", "--single-item", stage], root, commands, log)


def travel(action: str, stage: str, root: Path, commands: Commands, log: Log) -> int:
    """0, ABSENT or KEPT. Raises StageFailed."""
    return _run(stage, ["flows.remote", action, stage], root, commands, log, (ABSENT, KEPT))


def _run(
    stage: str,
    module: list[str],
    root: Path,
    commands: Commands,
    log: Log,
    accepted: tuple[int, ...] = (),
) -> int:
    """The exit code of a Python module with its arguments: 0 or one that is accepted."""
    output: deque[str] = deque(maxlen=_KEPT)

    def forward(line: str) -> None:
        line = _CLOCK.sub("", line)
        output.append(line)
        if not line.strip().startswith(_HINTS):
            log(line)

    code = commands.run([sys.executable, "-m", *module], forward, root)
    if code != 0 and code not in accepted:
        lines = list(output)
        raise StageFailed(stage, stage_code(lines, code), lines)
    return code


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
