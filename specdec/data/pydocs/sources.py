"""Finding the source files of a package, its public API first."""

import os
from collections.abc import Iterator
from pathlib import Path

from specdec.data.pydocs.entries import Entry
from specdec.data.pydocs.syntax import entries_of_file

SKIPPED_FOLDERS = {
    "tests", "test", "testing", "_test", "idlelib", "lib2to3", "turtledemo", "ensurepip",
    "site-packages", "dist-packages", "_vendor", "vendor", "vendored", "pydoc_data", "encodings",
    "models", "protos", "migrations",
}  # fmt: skip


def entries_of_package(package: str, root: Path, limit: int) -> Iterator[Entry]:
    """What the public modules below ``root`` document, in at most ``limit`` bytes of source.

    The package 'python' is the standard library, whose modules stand below no name.
    """
    for path in _source_files(root, limit):
        module = _module_name(path, root, "" if package == "python" else package)
        if not any(part.startswith("_") for part in module.split(".")):
            yield from entries_of_file(path, package, module)


def _source_files(root: Path, limit: int) -> list[Path]:
    """Python files below ``root``, shallow ones first (the public API), up to ``limit`` bytes."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in SKIPPED_FOLDERS and n.isidentifier()]
        found += [Path(folder, f) for f in files if f.endswith(".py") and f[:-3].isidentifier()]
    found.sort(key=lambda p: (len(p.relative_to(root).parts), p.relative_to(root).as_posix()))
    kept, total = [], 0
    for path in found:
        total += path.stat().st_size
        if total > limit:
            break
        kept.append(path)
    return kept


def _module_name(path: Path, root: Path, package: str) -> str:
    parts = [package, *path.relative_to(root).with_suffix("").parts]
    return ".".join(part for part in parts if part not in ("", "__init__"))
