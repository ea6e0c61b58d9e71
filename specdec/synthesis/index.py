"""What a journal holds, by key, in a temporary SQLite database: memory does not grow with the rows.

SQLite deletes the file when it is closed, and the journal alone is the truth: the index is made anew from it.
"""

import hashlib
import sqlite3
from collections import Counter

Place = tuple[int, int]  # a line's offset and length in bytes

ANSWERED, DROPPED, FAILED, CLAIMED = range(4)
CACHE_KIB = 8192


class Index:
    """Key -> state, place of the line, kind. A key's last word counts."""

    def __init__(self) -> None:
        # "" is a private file that goes with the connection. All access is from one event loop.
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._rows.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.execute(
            "CREATE TABLE rows (key BLOB PRIMARY KEY, state INTEGER, place INTEGER, length INTEGER, kind TEXT)"
            " WITHOUT ROWID"
        )
        self._counts: Counter[int] = Counter()

    def close(self) -> None:
        """Deletes the database."""
        self._rows.close()

    def put(self, key: str, state: int, place: Place = (0, 0), kind: str | None = None) -> None:
        """Replaces what is known of a key."""
        self._counts[state] += 1
        if (before := self.state(key)) is not None:
            self._counts[before] -= 1
        self._rows.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", (_digest(key), state, *place, kind))

    def state(self, key: str) -> int | None:
        """None where the key is unknown."""
        found = self._rows.execute("SELECT state FROM rows WHERE key = ?", (_digest(key),)).fetchone()
        return None if found is None else int(found[0])

    def place(self, key: str) -> Place:
        """Where an answered row's line is. Raises KeyError."""
        query = "SELECT place, length FROM rows WHERE key = ? AND state = ?"
        found = self._rows.execute(query, (_digest(key), ANSWERED)).fetchone()
        if found is None:
            raise KeyError(key)
        return int(found[0]), int(found[1])

    def count(self, state: int) -> int:
        """How many keys are in a state."""
        return self._counts[state]

    def kind(self, key: str) -> str | None:
        """Why a row was dropped or has failed; None where it was neither, or the key is unknown."""
        found = self._rows.execute("SELECT kind FROM rows WHERE key = ?", (_digest(key),)).fetchone()
        return None if found is None else found[0]


def _digest(key: str) -> bytes:
    """16 bytes: two of a billion keys meet with a chance of 1 in 10^20."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
