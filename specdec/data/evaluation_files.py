"""Prompts that drafters are evaluated on elsewhere, and that training must not see: benchmarks, as JSON files."""

from pathlib import Path
from typing import Any

from specdec.data.conversations import BadRow, first_of, load_row, parse_row
from specdec.data.prompts import user_turns
from specdec.data.rows import read_rows
from specdec.errors import DataError
from specdec.io import sha256_file

_KEY = "prepare_prompts.evaluation_files"


def read_evaluation_file(path: Path, sha256: str) -> list[list[str]]:
    """The user turns of every row. A row is {"turns": [...]}, {"question"} or {"prompt"}, or a conversation.

    Raises DataError when the file is missing, is another one than `sha256` says, or has a row of no such form.
    """
    if not path.is_file():
        raise DataError(f"{_KEY}: there is no {path}: put the file there, or take it out of the list")
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"{_KEY}: {path} has sha256 {found}, and {sha256} is stated: bring the stated file, or state the hash of "
            "this one"
        )
    return [_read(row, number, path) for number, row in read_rows(path)]


def _read(line: bytes, number: int, path: Path) -> list[str]:
    try:
        return _turns(load_row(line))
    except BadRow as error:
        raise DataError(f"{_KEY}: row {number} of {path} holds no prompt ({error.kind})") from None


def _turns(row: dict[str, Any]) -> list[str]:
    if row.get("conversations") or row.get("messages"):
        return user_turns(parse_row(row).messages)
    turns = row["turns"] if row.get("turns") is not None else [first_of(row, "question", "prompt")]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise BadRow("no turns, question, prompt, messages or conversations")
    return turns
