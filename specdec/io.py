"""Writing so that a reader never sees half a file: write aside, fsync, rename."""

import contextlib
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil


def write_text(path: Path, text: str) -> None:
    """Replaces `path` atomically."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` with sorted, indented JSON (the same content gives the same bytes)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Replaces `path` with one JSON object a line; returns the number of lines."""
    count = 0
    with replacing(path) as aside, aside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(dump_line(row))
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of a JSONL file that we wrote ourselves, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def dump_line(row: Any) -> str:
    """One compact JSON line, newline included."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    aside = _aside(path)
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_dir(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it becomes `path` (whole, or not at all) when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    aside, old = _aside(path), _aside(path)
    aside.mkdir()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            sync(file)
        if path.exists():
            path.rename(old)
        aside.replace(path)
        sync(path.parent)
    finally:
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)


def _aside(path: Path) -> Path:
    """`.NAME.PID.RANDOM.part`: beside the path, so that renaming is atomic; DVC ignores it."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _sweep(path: Path) -> None:
    """Removes what a killed writer of this path left behind."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*.part"):
        pid = left.name.split(".")[-3]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
