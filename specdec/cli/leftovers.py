"""What the stages keep under `.specdec` and nobody needs any more. Read from what lies there; nothing runs meanwhile.

Touched are names that we give; links and anything else stay.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from specdec.config import Params
from specdec.room import Removal, remove, size_of

_ADDRESS = re.compile(r"[0-9a-f]{16}")
_JOURNAL = re.compile(r"[0-9a-f]{16}\.jsonl")
_FETCHED = re.compile(r"m-\w+")
_SERVED = re.compile(r"(?P<name>.+)-(?P<version>\d+)")
_PART = re.compile(r"\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")  # of specdec.io
_TEMPORARY = re.compile(r"(model|mlflow)-\w{8}")  # of a registration or a download


@dataclass(frozen=True)
class Leftovers:
    """root: the project's. caches, journals: how many stay, the ones used last. aliased: `NAME-VERSION` of versions
    with an alias; None where the registry could not be asked."""

    root: Path
    params: Params
    caches: int
    journals: int
    aliased: frozenset[str] | None

    def removals(self) -> Iterator[Removal]:
        yield from self._torn()
        yield from self._checkpoints()
        yield from self._features()
        yield from self._journals()
        yield from self._warm_starts()
        yield from self._served()

    def _torn(self) -> Iterator[Removal]:
        for path in _entries(self._work):
            if _TEMPORARY.fullmatch(path.name) and path.is_dir():
                yield self._removal(path, "left by a process that was killed")
        for folder in (
            self._work,
            *(self._work / name for name in ("features", "champion", "warm_start", "serving")),
        ):
            for path in _entries(folder):
                part = _PART.fullmatch(path.name)
                if part and not psutil.pid_exists(int(part["pid"])):
                    yield self._removal(path, "left by a process that was killed")

    def _checkpoints(self) -> Iterator[Removal]:
        for drafter in _entries(self._work / "train"):
            for work in _matching(drafter, _ADDRESS):
                if drafter.name not in self.params.drafters:
                    yield self._removal(work, f"checkpoints of {drafter.name}, which is not in params.yaml")
                elif _finished(work, self.root / "models/drafters" / drafter.name):
                    yield self._removal(work, f"checkpoints of {drafter.name}, whose training is finished")
        for logs in _entries(self._work / "engine"):
            if logs.is_dir() and logs.name not in self.params.drafters:
                yield self._removal(logs, f"logs of {logs.name}, which is not in params.yaml")

    def _features(self) -> Iterator[Removal]:
        folders = _matching(self._work / "features", _ADDRESS)
        by_use = sorted(folders, key=lambda f: max(_time(f), _time(f / "index.json")), reverse=True)
        for folder in by_use[self.caches :]:
            yield self._removal(folder, "features that were not used lately; a training computes them again")

    def _journals(self) -> Iterator[Removal]:
        present = _deciding(self.params.synthesize.model_dump(mode="json"))
        files = sorted(_matching(self._work / "synthesize", _JOURNAL), key=_time, reverse=True)
        for file in files[self.journals :]:
            if _deciding(_settings_of(file)) != present:
                yield self._removal(
                    file, "answers under other settings, not added to lately; a base gives them again"
                )

    def _warm_starts(self) -> Iterator[Removal]:
        if any(d.training.warm_start for d in self.params.drafters.values()):
            return  # whichever it is
        for folder in _matching(self._work / "warm_start", _FETCHED):
            yield self._removal(folder, "fetched to begin a training with; no setting does now")

    def _served(self) -> Iterator[Removal]:
        if self.aliased is None:
            return
        commands = _commands()
        for folder in _matching(self._work / "serving", _SERVED):
            if folder.name not in self.aliased and not any(str(folder) in command for command in commands):
                yield self._removal(folder, "fetched to be served; no alias has it now, and no process names it")

    @property
    def _work(self) -> Path:
        return self.root / ".specdec"

    def _removal(self, path: Path, why: str) -> Removal:
        return Removal(str(path.relative_to(self.root)), why, size_of(path), functools.partial(remove, path))


def _finished(work: Path, drafter: Path) -> bool:
    """Whether this training ended and its drafter was written since."""
    mark, written = _time(work / "finished"), _time(drafter / "specdec.json")
    return 0 < mark <= written


def _settings_of(journal: Path) -> dict[str, Any]:
    """Of its first line; empty where that is damaged."""
    try:
        with journal.open(encoding="utf-8") as file:
            found = json.loads(file.readline())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings and a journal's header both say: no base, and no engine that `auto` has come to."""
    return {k: v for k, v in settings.items() if k not in ("base", "engine", "max_failed_share")}


def _matching(folder: Path, name: re.Pattern[str]) -> list[Path]:
    return [path for path in _entries(folder) if name.fullmatch(path.name)]


def _entries(folder: Path) -> Iterable[Path]:
    """Without links: what they point to is somebody's."""
    try:
        return sorted(path for path in folder.iterdir() if not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _time(path: Path) -> float:
    """Of the last change; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _commands() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
