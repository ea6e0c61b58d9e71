"""Prompts beside the dataset's: what is kept of each form, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.data.further_prompts import read_further_prompts
from specdec.errors import DataError
from specdec.io import sha256_file, write_jsonl

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
MORE = {"role": "user", "content": "And then?"}


def read(path: Path, *rows: dict[str, Any]) -> list[Any]:
    write_jsonl(path, rows)
    return list(read_further_prompts(path, sha256_file(path)))


def test_a_conversation_keeps_its_answers(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "june.jsonl", {"messages": [USER, ANSWER, MORE], "category": "help"})
    assert found.messages == [USER, ANSWER, MORE]
    assert found.category == "june: help"


def test_of_questions_without_answers_the_first_is_kept(tmp_path: Path) -> None:
    rows = {"turns": ["Why?", "And then?"]}, {"prompt": "Why?", "system": "Be short.", "category": "c"}
    first, second = read(tmp_path / "june.jsonl", *rows)
    assert (first.messages, first.category) == ([USER], "june: questions")
    assert second.messages == [{"role": "system", "content": "Be short."}, USER]
    assert second.category == "june: c"


def test_rows_with_the_same_id_are_no_error(tmp_path: Path) -> None:
    """Ids are of no account here: a prompt's own is made of what it asks."""
    assert len(read(tmp_path / "a.jsonl", {"id": 1, "prompt": "Why?"}, {"id": 1, "prompt": "How?"})) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: it must have a row for each prompt"),
        (json.dumps({"prompt": "Why?"}) + "\n{}\n", "row 2 of .* holds no prompt"),
        ('{"prompt": ', r"row 1 of .* holds no prompt \(not JSON\)"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        list(read_further_prompts(path, sha256_file(path)))


def test_another_file_than_stated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^prepare_prompts\.further_prompts: there is no "):
        list(read_further_prompts(tmp_path / "none.jsonl", "0" * 64))
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"and 0000.* is stated"):
        list(read_further_prompts(tmp_path / "a.jsonl", "0" * 64))
