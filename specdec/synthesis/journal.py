"""The journal: every answered row, on the disk before it counts as answered.

One JSONL file a fingerprint (settings, engine, base and `VERSION`), so that answers under other settings never
meet. Its first line is a header with the fingerprint; each further line is one answered or failed row, whole or
absent. One writer: the file is locked as long as it is open, and the lock dies with the process. A line is
handed to the system at once (a killed process loses nothing) and fsync'd in batches (a power cut loses a second
or so, never a whole file).
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from specdec.errors import DataError, TransientError
from specdec.io import dump_line, sha256_json

FORMAT = 1  # of the file
VERSION = 1  # of what a request means: raise it when a change in the code makes old answers wrong
ROWS_PER_SYNC, SECONDS_PER_SYNC = 64, 1.0

Place = tuple[int, int]  # a line's offset and length in bytes


class Journal:
    """The journal of one fingerprint, to be used in `with`. `len()` and `in` speak of answered rows."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self._file = file
        self._answered: dict[str, Place] = {}  # memory holds no rows
        self._failed: dict[str, str] = {}  # id -> kind of the last failure
        self._unsynced, self._synced_at = 0, time.monotonic()

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> Self:
        """Opens or begins the journal of these settings; repairs a torn end.

        Raises TransientError where another process writes it, DataError where it is damaged or another's.
        """
        meaning = {"version": VERSION, "settings": dict(settings)}
        fingerprint = sha256_json(meaning)
        path = folder / f"{fingerprint[:16]}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
        try:
            journal = cls(file, path)
            journal._load({"journal": FORMAT, "fingerprint": fingerprint, **meaning})
        except BaseException:
            file.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes all rows durable and lets go of the lock."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._answered

    def __len__(self) -> int:
        return len(self._answered)

    @property
    def failures(self) -> Counter[str]:
        """Rows whose last word is a failure, by its kind."""
        return Counter(self._failed.values())

    def row(self, row_id: str) -> dict[str, Any]:
        """An answered row, read from the disk. Raises KeyError."""
        offset, length = self._answered[row_id]
        row: dict[str, Any] = json.loads(os.pread(self._file.fileno(), length, offset))["row"]
        return row

    def answered(self, row: Mapping[str, Any]) -> None:
        """Records a finished row. A row is answered once: a second time is a mistake of ours."""
        if row["id"] in self._answered:
            raise AssertionError(f"row {row['id']} was answered twice")
        self._answered[row["id"]] = self._append({"id": row["id"], "row": row})
        self._failed.pop(row["id"], None)

    def failed(self, row_id: str, kind: str, message: str) -> None:
        """Records why a row has no answer; a later run tries it again."""
        self._append({"id": row_id, "failed": {"kind": kind, "message": message}})
        self._failed[row_id] = kind

    def _append(self, entry: Mapping[str, Any]) -> Place:
        """Writes one line with one call; returns where it is."""
        offset = self._file.seek(0, os.SEEK_END)
        line = dump_line(entry).encode()
        if self._file.write(line) != len(line):  # a full disk may take half of it; the next start cuts that off
            raise OSError(28, "the journal's line was written in part", str(self.path))
        self._unsynced += 1
        if self._unsynced >= ROWS_PER_SYNC or time.monotonic() - self._synced_at > SECONDS_PER_SYNC:
            self._sync()
        return offset, len(line)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()

    def _load(self, header: Mapping[str, Any]) -> None:
        """Reads the index, and cuts the end off where a crash has torn it."""
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                entry = _parse(line)
                if entry is None:
                    _refuse_if_more(lines, self.path, number)
                    break
                self._index(entry, (whole, len(line)), header, number)
                whole += len(line)
        self._file.truncate(whole)
        if whole == 0:
            self._append(header)
            self._sync()

    def _index(self, entry: Mapping[str, Any], place: Place, header: Mapping[str, Any], number: int) -> None:
        if number == 1:
            if entry.get("fingerprint") != header["fingerprint"] or entry.get("journal") != FORMAT:
                raise DataError(f"{self.path} is the journal of other settings or another base: move it away")
        elif "row" in entry:
            self._answered[entry["id"]] = place
            self._failed.pop(entry["id"], None)
        elif "failed" in entry and entry["id"] not in self._answered:
            self._failed[entry["id"]] = entry["failed"]["kind"]


def _open_locked(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TransientError(f"{path} is in use by another run: wait until that has ended, or stop it") from None
    return file


def _parse(line: bytes) -> dict[str, Any] | None:
    """One entry, or None where the line is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _refuse_if_more(lines: BinaryIO, path: Path, number: int) -> None:
    """A torn end is a crash and is cut off; a broken line with whole ones after it is damage, not ours to
    guess."""
    if any(_parse(line) is not None for line in lines):
        raise DataError(f"{path} is damaged at line {number}: delete that line to ask its row again")
