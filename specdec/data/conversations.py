"""One parser for conversation files: rows of Daring-Anteater, ShareGPT or `messages`, as JSONL or as one array.

{"system": "...", "dataset": "...", "conversations": [{"from": "User", "value": "..."}, ...]}
{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
{"messages": [{"role": "user", "content": "..." or [{"type": "text", "text": "..."}, ...]}, ...]}
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.data.rows import read_rows

Message = dict[str, str]

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "system",
}
_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython")
LISTED = 50  # bad rows that are listed; all are counted


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
    """What a file holds. bad_lines: the first of them, as (line of JSONL or place in the array, from 1; kind)."""

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


def read_conversations(file: Path, count: RowCount, name: str = "") -> Iterator[Conversation]:
    """The good rows of a file, one at a time; `count` fills up on the way. Blank lines are no rows.

    name: what errors call the file, if not by its path.
    Raises DataError when the file is a Git LFS pointer or an array that is cut short.
    """
    for number, row in read_rows(file, name):
        count.rows += 1
        try:
            conversation = parse_line(row)
        except BadRow as error:
            count.add_bad(number, error.kind)
            continue
        yield conversation


def parse_line(line: bytes) -> Conversation:
    """One row. Raises BadRow."""
    return parse_row(load_row(line))


def load_row(line: bytes) -> dict[str, Any]:
    """The JSON object that a row is. Raises BadRow."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the latter by thousands of nested brackets
        raise BadRow("not JSON") from None
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    return row


def parse_row(row: dict[str, Any]) -> Conversation:
    """A row's conversation, without an answer at its beginning, whose question is not there. Raises BadRow."""
    turns = row.get("conversations") or row.get("messages")  # merged datasets have both columns, one of them null
    if not isinstance(turns, list) or not turns:
        raise BadRow("no conversation")
    messages = [_message(turn) for turn in turns]
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    if not system.strip():
        system = as_text(row.get("system") or "")
    if messages and messages[0]["role"] == "assistant":
        del messages[0]
    _check_order(messages)
    opening = [{"role": "system", "content": system}] if system.strip() else []
    return Conversation(_category(row), [*opening, *messages])


def first_of(row: dict[str, Any], *keys: str) -> Any:
    """The value of the first of these keys that has one: null is none."""
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadRow("turn is not an object")
    role = _role(first_of(turn, "from", "role"))
    text = _content(first_of(turn, "value", "content"))
    if not text.strip() and role != "system":
        raise BadRow("empty turn")
    return {"role": role, "content": text}


def _role(role: Any) -> str:
    name = role.lower() if isinstance(role, str) else ""
    if name in _TOOLS:
        raise BadRow("turn of a tool")
    if name not in _ROLES:
        raise BadRow("unknown role")
    return _ROLES[name]


def _content(value: Any) -> str:
    """A turn's text; the parts of OpenAI's list form go on lines of their own, as vLLM puts them."""
    if not isinstance(value, list):
        return as_text(value)
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        raise BadRow("content that is not all text")
    return "\n".join(as_text(part.get("text")) for part in value)


def as_text(value: Any) -> str:
    """A string that can be written and tokenised. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow("text is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair: no tokenizer and no file can hold it
        raise BadRow("text is not valid Unicode") from None
    return value


def _check_order(turns: list[Message]) -> None:
    roles = [m["role"] for m in turns]
    if "user" not in roles:
        raise BadRow("no user turn")
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise BadRow("roles out of order")


def _category(row: dict[str, Any]) -> str:
    found = next((row[key] for key in ("dataset", "category", "type") if isinstance(row.get(key), str)), "")
    return as_text(found) or "none"
