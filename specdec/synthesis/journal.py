"""The journal: every answered row, on the disk before it counts as answered.

An append-only JSONL file. Its first line is a header with the settings that decide the answers and their
fingerprint; each further line is one answered, dropped or failed row, whole or absent. One writer: the file is
locked as long as it is open, and the lock dies with the process. A line is handed to the system at once (a killed
process loses nothing) and fsync'd in batches by a thread (a power cut loses half a second, never a whole file).
"""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from specdec.errors import DataError, TransientError
from specdec.io import dump_line, sha256_json
from specdec.synthesis.index import ANSWERED, CLAIMED, DROPPED, FAILED, Index, Place

FORMAT = 2  # of the file
VERSION = 2  # of what a request means: raise it when a change in the code makes old answers wrong
SECONDS_PER_SYNC = 0.5


def journal_path(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A file of these settings' own, so that answers under other settings never meet."""
    return folder / f"{_fingerprint(settings)[:16]}.jsonl"


class Journal:
    """The journal of one run's settings, to be used in `with`. `in` and `len` speak of rows that need no request
    any more: answered, or dropped as the settings say."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self._file, self._index = file, Index()
        self._dirty, self._closing = False, threading.Event()
        self._error: OSError | None = None  # of a write or a sync: no line may follow
        self.runs: list[dict[str, Any]] = []  # the figures of the runs that have asked for something, oldest first
        self._syncing = threading.Thread(target=self._sync_now_and_then, daemon=True)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Self:
        """Opens or begins the journal of these settings; repairs a torn end.

        Raises TransientError where another process writes it, DataError where it is damaged or was begun with
        other settings (they are named). Nothing is written then.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = cls(_open_locked(path), path)
        try:
            journal._load({"journal": FORMAT, "fingerprint": _fingerprint(settings), "settings": dict(settings)})
        except BaseException:
            journal._let_go()
            raise
        journal._syncing.start()
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Makes all rows durable and lets go of the lock. Raises OSError where a row may not be on the disk."""
        if self._file.closed:
            return
        self._closing.set()
        self._syncing.join()
        try:
            if self._error:  # a second fsync would succeed, and the rows would still be lost
                raise self._error
            os.fsync(self._file.fileno())
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._file.close()
        self._index.close()

    def __contains__(self, key: str) -> bool:
        return self._index.state(key) in (ANSWERED, DROPPED)

    def __len__(self) -> int:
        return self._index.count(ANSWERED) + self._index.count(DROPPED)

    def why(self, key: str) -> str | None:
        """Why a row has no answer: the kind of its failure, or of what drops it. None where it has one, or was not
        asked."""
        return self._index.kind(key)

    @property
    def empty(self) -> bool:
        """Whether nothing has been recorded yet."""
        return not (self._index.count(ANSWERED) + self._index.count(DROPPED) + self._index.count(FAILED))

    def row(self, key: str) -> dict[str, Any] | None:
        """An answered row, read from the disk; None where the row has none."""
        if self._index.state(key) != ANSWERED:
            return None
        offset, length = self._index.place(key)
        row: dict[str, Any] = json.loads(os.pread(self._file.fileno(), length, offset))["row"]
        return row

    def claim(self, key: str) -> bool:
        """Whether this row is to be asked: it is not done, and nobody in this run has claimed it."""
        if self._index.state(key) in (ANSWERED, DROPPED, CLAIMED):
            return False
        self._index.put(key, CLAIMED)
        return True

    def answered(self, key: str, row: Mapping[str, Any]) -> None:
        """Records a finished row. A row is answered once: a second time is a mistake of ours."""
        if key in self:
            raise AssertionError(f"row {key} was answered twice")
        self._index.put(key, ANSWERED, self._append({"key": key, "row": row}))

    def dropped_row(self, key: str, kind: str) -> None:
        """Records that the settings leave a row out; it is not asked again."""
        self._index.put(key, DROPPED, self._append({"key": key, "dropped": kind}), kind)

    def failed(self, key: str, kind: str, message: str) -> None:
        """Records why a row has no answer; a later run tries it again."""
        self._index.put(key, FAILED, self._append({"key": key, "failed": {"kind": kind, "message": message}}), kind)

    def ran(self, figures: Mapping[str, Any]) -> None:
        """Records the figures of a run, which a later one that finds nothing to do still shows."""
        self._append({"run": figures})
        self.runs.append(dict(figures))

    def _append(self, entry: Mapping[str, Any]) -> Place:
        """Writes one line with one call; returns where it is."""
        if self._error:
            raise self._error
        offset = self._file.seek(0, os.SEEK_END)
        line = dump_line(entry).encode(errors="backslashreplace")  # half a surrogate pair, as JSON writes it
        try:
            if self._file.write(line) != len(line):  # the next start cuts it off
                raise OSError(errno.ENOSPC, "a line was written in part", str(self.path))
        except OSError as error:
            self._error = error
            raise
        self._dirty = True
        return offset, len(line)

    def _sync_now_and_then(self) -> None:
        """In a thread, since the disk may take longer for it than the server for an answer."""
        while not self._closing.wait(SECONDS_PER_SYNC):
            if self._dirty:
                self._dirty = False
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._error = error

    def _load(self, header: Mapping[str, Any]) -> None:
        """Reads the index, and cuts the end off where a crash has torn it."""
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                entry = _parse(line)
                if entry is None:
                    _refuse_what_is_no_torn_end(line, lines, self.path, number, dump_line(header).encode())
                    break
                if number == 1:
                    _compare(entry, header, self.path)
                elif not self._add(entry, (whole, len(line))):
                    raise DataError(_damaged(self.path, number))
                whole += len(line)
        self._file.truncate(whole)
        if whole == 0:
            self._append(header)
            os.fsync(self._file.fileno())

    def _add(self, entry: Mapping[str, Any], place: Place) -> bool:
        """Puts an entry into the index; False where it is none."""
        match entry:
            case {"key": str(key), "row": dict()}:
                self._index.put(key, ANSWERED, place)
            case {"key": str(key), "dropped": str(kind)}:
                self._index.put(key, DROPPED, place, kind)
            case {"key": str(key), "failed": {"kind": str(kind)}}:
                if key not in self:
                    self._index.put(key, FAILED, place, kind)
            case {"run": dict(figures)}:
                self.runs.append(figures)
            case _:
                return False
        return True


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return sha256_json({"version": VERSION, "settings": dict(settings)})


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
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _compare(found: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> None:
    """Raises DataError, naming what differs, where a journal was begun with other settings."""
    if found.get("journal") != FORMAT:
        raise DataError(f"{path} is no journal of this version of specdec: move it away to begin a new one")
    if found.get("fingerprint") == header["fingerprint"]:
        return
    before, now = _flat(found.get("settings", {})), _flat(header["settings"])
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    differences = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names[:5])
    raise DataError(
        f"{path} was begun with other settings ({differences or 'an older version of specdec'}): restore them to go "
        "on with it, or move it away to begin anew"
    )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path: `sampling.top_p`."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _refuse_what_is_no_torn_end(line: bytes, lines: BinaryIO, path: Path, number: int, header: bytes) -> None:
    """A torn end is a crash and is cut off; a broken line with whole ones behind it is damage, not ours to guess;
    and a file that does not begin as a journal does is somebody's."""
    if number == 1 and not header.startswith(line) and line.strip(b"\0"):
        raise DataError(f"{path} is no journal, or its first line is damaged: move it away to begin a new one")
    if any(_parse(later) is not None for later in lines):
        raise DataError(_damaged(path, number))


def _damaged(path: Path, number: int) -> str:
    return f"{path} is damaged at line {number}: delete that line to ask its row again"
