"""`specdec clean`: shows what can go, with sizes and reasons, and removes it when told to."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from specdec.cli.dvc_cache import cache_removal, check_idle
from specdec.cli.leftovers import Leftovers
from specdec.config import load_params
from specdec.config.files import PARAMS
from specdec.errors import ConfigError, SpecdecError, TransientError
from specdec.io import write_text
from specdec.room import Removal, shown_size
from specdec.tracking.clean import Registry, registry_of, registry_removals
from specdec.tracking.release import Say


@dataclass(frozen=True)
class Found:
    """kept: versions that stay, with the reason. notes: what could not be looked at, and why."""

    removals: list[Removal]
    kept: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(removal.bytes or 0 for removal in self.removals)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """No run, no registration and no `dvc repro` goes on in this folder while the block runs. Raises TransientError
    where one does, ConfigError where this is no project."""
    if not (root / "dvc.yaml").is_file() or not (root / PARAMS).is_file():
        raise ConfigError(f"{root} has no dvc.yaml with {PARAMS}: run this in the root of the project")
    work = root / ".specdec"
    with contextlib.ExitStack() as held:
        try:
            work.mkdir(exist_ok=True)
            # As the flow takes it (flows/alone.py): the pid is for whoever is refused.
            _take(held, work / "run.lock", "a run")
            write_text(work / "run.pid", f"{os.getpid()}\n")
        except OSError as error:
            raise ConfigError(f"{work} cannot be written: {error.strerror}") from None
        held.callback((work / "run.pid").unlink, missing_ok=True)
        _take(held, work / "register.lock", "a registration or promotion")
        check_idle(root)
        yield


def _take(held: contextlib.ExitStack, lock: Path, what: str) -> None:
    try:
        held.enter_context(FileLock(lock).acquire(timeout=0))
    except Timeout:
        pid = lock.with_suffix(".pid")
        who = f" (pid {pid.read_text().strip()})" if pid.is_file() else ""
        raise TransientError(f"{what} is going on in this folder{who}: wait for it, or stop it") from None


def look(root: Path, keep: int, caches: int) -> Found:
    """Changes nothing. keep: versions, runs with their files, and journals; caches: of features."""
    removals: list[Removal] = []
    notes: list[str] = []
    registry: Registry | None = None
    try:
        registry = registry_of(root, keep)
        if registry:
            removals += registry_removals(registry, keep)
    except TransientError as error:
        notes.append(f"the registry is left as it is: {error}")
    aliased = frozenset(f"{registry.name}-{number}" for number in registry.aliased) if registry else None
    removals += Leftovers(root, load_params(root / PARAMS), caches, keep, aliased).removals()
    cache, note = cache_removal(root)
    removals += [cache] if cache else []
    notes += [note] if note else []
    return Found(removals, registry.kept if registry else {}, notes)


def show(found: Found, console: Console) -> None:
    table = Table(title="What can go", title_justify="left")
    table.add_column("what", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for removal in found.removals:
        table.add_row(removal.what, "?" if removal.bytes is None else shown_size(removal.bytes), removal.why)
    if found.removals:
        console.print(table)
    for number, why in sorted(found.kept.items(), reverse=True):
        console.print(f"version {number} stays: {why}", markup=False, highlight=False)
    for note in found.notes:
        console.print(f"not looked at: {note}", markup=False, highlight=False, soft_wrap=True)
    total = f"{len(found.removals)} things, {shown_size(found.bytes)}" if found.removals else "nothing can go"
    console.print(total, highlight=False)


def remove_all(found: Found, say: Say) -> int:
    """One after the other; what cannot be removed is named and left. Returns how many are left."""
    left = 0
    for removal in found.removals:
        try:
            removal.remove()
        except (OSError, SpecdecError) as error:
            left += 1
            say(f"left: {removal.what}: {error}")
        else:
            say(f"removed: {removal.what}")
    return left
