"""Prompts that drafters are evaluated on beside the held-out ones, and that training must not see: benchmarks."""

from collections import Counter
from pathlib import Path
from typing import Any

from specdec.data.prompt_files import read_prompt_file
from specdec.errors import DataError
from specdec.io import sha256_file

_KEY = "prepare_prompts.evaluation_files"


def read_evaluation_file(path: Path, sha256: str) -> list[dict[str, Any]]:
    """The rows of `read_prompt_file`.

    Raises DataError when the file is missing, is another one than `sha256` says, or cannot be read as prompts.
    """
    check_stated(path, sha256, _KEY)
    try:
        return read_prompt_file(path)
    except DataError as error:
        raise DataError(f"{_KEY}: {error}") from None


def check_stated(path: Path, sha256: str, key: str) -> None:
    """key: the setting that states the file. Raises DataError when it is missing, or another one."""
    if not path.is_file():
        raise DataError(f"{key}: there is no {path}: put the file there, or take it out of the list")
    found = sha256_file(path)
    if found != sha256:
        raise DataError(
            f"{key}: {path} has sha256 {found}, and {sha256} is stated: bring the stated file, or state the hash of "
            "this one"
        )


def turns_of(row: dict[str, Any]) -> list[str]:
    """What the user says in a row of an evaluation file."""
    return [row["messages"][-1]["content"], *row["further_turns"]]


def of_categories_in_turn(rows: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """`count` rows, of each category as many as of the others where it has them, in the file's order; None: all."""
    first = sorted(range(len(rows)), key=_numbers(rows).__getitem__)[:count]  # a stable order
    return [rows[place] for place in sorted(first)]


def first_of_each_category(rows: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """The first `count` rows of each category, in the file's order; None: all."""
    return [row for row, n in zip(rows, _numbers(rows), strict=True) if count is None or n < count]


def _numbers(rows: list[dict[str, Any]]) -> list[int]:
    """How many rows of its category stand in front of each row."""
    seen: Counter[str] = Counter()
    numbers = []
    for row in rows:
        numbers.append(seen[row["category"]])
        seen[row["category"]] += 1
    return numbers
