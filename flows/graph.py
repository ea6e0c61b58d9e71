"""What DVC knows: the stages, their order, and which are out of date. Nothing is declared again here."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError, TransientError

_ONE_AT_A_TIME = threading.Lock()  # DVC's objects are not made for several threads


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml`, with what its `meta` asks of the flow.

    retries: how often a failure that may pass (exit code 75) is tried again, after retry_delay seconds.
    exclusive: it runs alone, because it measures time or fills the machine. upstream: names of stages.
    here: it may run on this machine; else it can only be brought from the remote.
    """

    name: str
    upstream: tuple[str, ...]
    retries: int = 0
    retry_delay: float = 10.0
    exclusive: bool = False
    here: bool = True


@dataclass(frozen=True)
class Plan:
    """stages: upstream first. changed: those that are out of date already, before any other has run."""

    stages: tuple[Stage, ...]
    changed: frozenset[str]

    @property
    def up_to_date(self) -> bool:
        return not self.changed

    def only(self, names: list[str]) -> "Plan":
        """Of these stages (`train`: every `train@...`) and what they need; nothing else may run here.

        Raises ConfigError for a name that no stage has.
        """
        known = {stage.name for stage in self.stages} | {stage.name.partition("@")[0] for stage in self.stages}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"dvc.yaml has no stage {', '.join(unknown)}: it has {', '.join(sorted(known))}")
        wanted: set[str] = set()
        kept = []
        for stage in reversed(self.stages):
            here = stage.name in names or stage.name.partition("@")[0] in names
            if here or stage.name in wanted:
                wanted |= {stage.name, *stage.upstream}
                kept.append(replace(stage, here=here))
        return Plan(tuple(reversed(kept)), self.changed & wanted)


def read_plan(root: Path) -> Plan:
    """Raises ConfigError when there is no pipeline or DVC cannot read it, TransientError when it is busy."""
    if not (root / "dvc.yaml").is_file():
        raise ConfigError(f"dvc.yaml is not in {root}: run this in the root of the repository")
    with open_repo(root) as repo:
        stages = tuple(_stage(s, repo.index.graph) for s in _sorted(repo.index.graph))
        return Plan(stages, frozenset(repo.status()))


def is_changed(root: Path, stage: str) -> bool:
    """Whether DVC would run this stage now."""
    with open_repo(root) as repo:
        return bool(repo.status([stage]))


def allow_no_git(root: Path) -> bool:
    """Lets DVC work in a source tarball; says whether that had to be set now.

    The setting is local (`.dvc/config.local`), so it never reaches anybody's repository.
    """
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return False
    if not (root / ".dvc").is_dir():
        raise ConfigError(f"{root / '.dvc'} is missing: unpack the sources again, or run `dvc init --no-scm`")
    local = root / ".dvc" / "config.local"
    if local.is_file() and "no_scm" in local.read_text():
        return False
    command = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"DVC cannot be set to work without git: {done.stderr.strip()}")
    return True


@contextmanager
def open_repo(root: Path, config: dict[str, Any] | None = None) -> Iterator[Any]:
    """DVC's repository; `config` is laid over its settings. Raises ConfigError, TransientError where DVC is busy."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    with _ONE_AT_A_TIME:
        try:
            # A repository object remembers what it read, so each question gets a new one (0.1 s).
            with Repo(str(root), config=config, _wait_for_lock=True) as repo:
                yield repo
        except LockError as error:
            raise TransientError(f"DVC is busy ({_first(error)}): wait for the other run to end") from None
        except DvcException as error:
            raise ConfigError(f"DVC cannot read the pipeline: {_first(error)}") from None


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _sorted(graph: Any) -> list[Any]:
    """Upstream first; by name where the order is free. An edge leads from a stage to what it needs."""
    import networkx

    return list(networkx.lexicographical_topological_sort(graph.reverse(), key=lambda s: s.addressing))


def _stage(stage: Any, graph: Any) -> Stage:
    meta = stage.meta or {}
    return Stage(
        name=stage.addressing,
        upstream=tuple(sorted(s.addressing for s in graph.successors(stage))),
        retries=int(meta.get("retries", 0)),
        retry_delay=float(meta.get("retry_delay", 10.0)),
        exclusive=bool(meta.get("exclusive", False)),
    )
