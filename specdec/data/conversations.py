"""One parser for conversation files: JSONL rows of Daring-Anteater, ShareGPT or `messages`.

{"system": "...", "dataset": "...", "conversations": [{"from": "User", "value": "..."}, ...]}
{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
{"messages": [{"role": "user", "content": "..."}, ...]}
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.data.lfs import SIGNATURE
from specdec.errors import DataError

Message = dict[str, str]

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}
LISTED = 50  # bad lines that are listed; all are counted


@dataclass(frozen=True)
class Conversation:
    """category: the row's `dataset`, `type` or `category`. messages: an optional system turn, then user and
    assistant in turn."""

    category: str
    messages: list[Message]


class BadRow(ValueError):
    """A row that is no conversation; `kind` is what is counted."""

    def __init__(self, kind: str):
        super().__init__(kind)
        self.kind = kind


@dataclass
class RowCount:
    """What a file holds. bad_lines: the first of them, as (line number from 1, kind)."""

    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_lines: list[tuple[int, str]] = field(default_factory=list)

    @property
    def bad_share(self) -> float:
        return self.bad.total() / max(1, self.rows)

    def add_bad(self, line: int, kind: str) -> None:
        self.bad[kind] += 1
        if len(self.bad_lines) < LISTED:
            self.bad_lines.append((line, kind))


def read_conversations(file: Path, count: RowCount) -> Iterator[Conversation]:
    """The good rows of a file, one at a time; `count` fills up on the way. Blank lines are no rows.

    Raises DataError when the file is a Git LFS pointer.
    """
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1 and line.startswith(SIGNATURE):
                raise DataError(f"{file} is a Git LFS pointer and not the data: fetch it with `git lfs pull`")
            if not line.strip():
                continue
            count.rows += 1
            try:
                conversation = parse_line(line)
            except BadRow as error:
                count.add_bad(number, error.kind)
                continue
            yield conversation


def parse_line(line: bytes) -> Conversation:
    """One row. Raises BadRow."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the latter by thousands of nested brackets
        raise BadRow("not JSON") from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list) or not turns:
        raise BadRow("no conversation")
    messages = [_message(turn) for turn in turns]
    system = _text(row.get("system") or "")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    _check_order(messages)
    return Conversation(_category(row), messages)


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("turn is not an object")
    role = turn.get("from", turn.get("role"))
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow("unknown role")
    text = _text(turn.get("value", turn.get("content")))
    if not text.strip():
        raise BadRow("empty turn")
    return {"role": known, "content": text}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("text is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair: no tokenizer and no file can hold it
        raise BadRow("text is not valid Unicode") from None
    return value


def _check_order(messages: list[Message]) -> None:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise BadRow("roles out of order")


def _category(row: dict[str, Any]) -> str:
    found = next((row[key] for key in ("dataset", "category", "type") if isinstance(row.get(key), str)), "")
    return _text(found) or "none"
