"""Files of prompts to evaluate on, in the forms in which benchmarks and conversations come: JSONL, or one array.

{"question_id": 81, "category": "writing", "turns": ["...", "..."]}           Spec-Bench, MT-Bench
{"turns": ["..."]}, {"question": "..."}, {"prompt": "..."}                    one or several user turns
{"system": "...", "conversations": [...]}, {"messages": [...]}                see `conversations`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.data.conversations import BadRow, as_text, first_of, load_row, parse_row
from specdec.data.prompts import user_turns
from specdec.data.rows import read_rows
from specdec.errors import DataError


@dataclass(frozen=True)
class Questions:
    """What a row asks: user turns, one at least, and the system turn before them ("": none)."""

    system: str
    turns: list[str]


def read_prompt_file(path: Path) -> list[dict[str, Any]]:
    """`{"id", "category", "messages", "further_turns"}` of every row, in the file's order.

    messages: up to the first user turn and with it. further_turns: the user turns behind it. What a file lets the
    assistant say is left out: the base answers itself. id: the row's `question_id` or `id`, else the file's name and
    the row's number. category: the row's, else the file's name.
    Raises DataError when there is no such file, when it has no row or one without a prompt, and when ids repeat.
    """
    if not path.is_file():
        raise DataError(f"there is no file of prompts {path}: put it there, or name another one")
    places: dict[str, int] = {}
    rows = []
    for number, line in read_rows(path):
        row = _prompt(line, number, path)
        first = places.setdefault(row["id"], number)
        if first != number:
            raise DataError(f"rows {first} and {number} of {path} have the same id {row['id']!r}: give each its own")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty: it must have a row for each prompt")
    return rows


def questions_of(line: bytes, number: int, path: Path) -> tuple[dict[str, Any], Questions]:
    """(the row, what it asks). Raises DataError, which names the row, when that is nothing."""
    try:
        row = load_row(line)
        return row, _questions(row)
    except BadRow as error:
        raise DataError(f"row {number} of {path} holds no prompt ({error.kind})") from None


def _questions(row: dict[str, Any]) -> Questions:
    if row.get("conversations") or row.get("messages"):
        messages = parse_row(row).messages
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        return Questions(system, user_turns(messages))
    turns = row["turns"] if row.get("turns") is not None else [first_of(row, "question", "prompt")]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise BadRow("no turns, question, prompt, messages or conversations")
    if not all(as_text(turn).strip() for turn in turns):
        raise BadRow("empty turn")
    system = as_text(row.get("system") or "")
    return Questions(system if system.strip() else "", turns)


def _prompt(line: bytes, number: int, path: Path) -> dict[str, Any]:
    row, asked = questions_of(line, number, path)
    opening = [{"role": "system", "content": asked.system}] if asked.system else []
    return {
        "id": _named(row, ("question_id", "id"), f"{path.stem}-{number}", number, path),
        "category": _named(row, ("category",), path.stem, number, path),
        "messages": [*opening, {"role": "user", "content": asked.turns[0]}],
        "further_turns": asked.turns[1:],
    }


def _named(row: dict[str, Any], keys: tuple[str, ...], otherwise: str, number: int, path: Path) -> str:
    """The first of these keys that has a value, as a string. Raises DataError where it is no string or integer."""
    value = first_of(row, *keys)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    try:
        return as_text(otherwise if value is None else value).strip() or otherwise
    except BadRow as error:
        raise DataError(f"the {keys[-1]} of row {number} of {path} is no name ({error.kind})") from None
