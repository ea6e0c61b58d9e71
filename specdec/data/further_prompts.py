"""Prompts beside the dataset's: what users ask now, as an operator collects it, to train on and to measure with."""

from collections.abc import Iterator
from pathlib import Path

from specdec.data.conversations import Conversation, parse_row
from specdec.data.evaluation_files import check_stated
from specdec.data.prompt_files import questions_of
from specdec.data.rows import read_rows
from specdec.errors import DataError

KEY = "prepare_prompts.further_prompts"


def read_further_prompts(path: Path, sha256: str) -> Iterator[Conversation]:
    """The conversations of one of `prepare_prompts.further_prompts`; the category names the file, so that they are
    told apart from the dataset's.

    A file in one of the forms of `specdec.data.prompt_files`. A conversation keeps its answers, which later questions
    stand on; of questions without answers the first is kept. Raises DataError when the file is missing, is another
    one than `sha256` says, is empty, or has a row without a prompt.
    """
    check_stated(path, sha256, KEY)
    yield from conversations_of(path)


def conversations_of(path: Path) -> Iterator[Conversation]:
    """The same, whatever the hash. Raises DataError."""
    number = 0
    for number, line in read_rows(path, f"{KEY}: {path}"):
        row, asked = questions_of(line, number, path)
        if row.get("conversations") or row.get("messages"):
            found = parse_row(row)
            yield Conversation(f"{path.stem}: {found.category}", found.messages)
            continue
        opening = [{"role": "system", "content": asked.system}] if asked.system else []
        messages = [*opening, {"role": "user", "content": asked.turns[0]}]
        yield Conversation(f"{path.stem}: {row.get('category') or 'questions'}", messages)
    if not number:
        raise DataError(f"{KEY}: {path} is empty: it must have a row for each prompt")
