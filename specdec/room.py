"""Room on the disk: is there enough for what comes, and what takes it now."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specdec.errors import SpecdecError

_SPARE = 2**28  # bytes that stay free: others write too


@dataclass(frozen=True)
class Removal:
    """Something that can go. bytes: None where nobody can say. remove: may raise OSError or SpecdecError; begun and
    killed, it can be done again."""

    what: str
    why: str
    bytes: int | None
    remove: Callable[[], None]


def need_room(folder: Path, needed: int, what: str) -> None:
    """Raises SpecdecError where the disk of `folder` (which need not exist yet) has no `needed` bytes for `what`."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(there).free
    if needed + _SPARE > free:
        raise SpecdecError(
            f"{what} needs {shown_size(needed)}, and the disk of {there} has {shown_size(free)} free: free some "
            "space (`specdec clean` shows what can go)"
        )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; of links the link alone. What vanishes meanwhile is 0."""
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(size_of(Path(entry.path)) for entry in entries)
    except OSError:
        return 0


def shown_size(count: float) -> str:
    """`1.5 GB`; decimal units, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def remove(path: Path) -> None:
    """A file or a folder; of a link the link alone. What is gone already is no error."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
