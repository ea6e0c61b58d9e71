"""Prompts that drafters are evaluated on elsewhere, and that training must not see: benchmarks, as JSON files."""

from pathlib import Path

from specdec.data.prompt_files import questions_of
from specdec.data.rows import read_rows
from specdec.errors import DataError
from specdec.io import sha256_file

_KEY = "prepare_prompts.evaluation_files"


def read_evaluation_file(path: Path, sha256: str) -> list[list[str]]:
    """The user turns of every row, in the forms that `prompt_files` reads.

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
    return [_turns(row, number, path) for number, row in read_rows(path)]


def _turns(line: bytes, number: int, path: Path) -> list[str]:
    try:
        return questions_of(line, number, path)[1].turns
    except DataError as error:
        raise DataError(f"{_KEY}: {error}") from None
