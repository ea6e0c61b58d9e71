"""Evaluation files: every accepted form, and that nothing else passes silently."""

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.data.evaluation_files import (
    first_of_each_category,
    of_categories_in_turn,
    read_evaluation_file,
    turns_of,
)
from specdec.errors import DataError
from specdec.io import sha256_file

FORMS = [
    {"turns": ["Q", "R"]},
    {"question_id": 1, "category": "math", "turns": ["Q", "R"]},
    {"messages": [{"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "A"), ("user", "R"))]},
    {
        "system": "S",
        "conversations": [{"from": f, "value": c} for f, c in (("User", "Q"), ("Assistant", "A"), ("User", "R"))],
    },
]


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return sha256_file(file)


def turns(file: Path, rows: list[Any]) -> list[list[str]]:
    return [turns_of(row) for row in read_evaluation_file(file, write(file, rows))]


def test_every_form(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    rows = [*FORMS, {"question": "Q", "answer": "A"}, {"task_id": "1", "prompt": "def f():"}]
    assert turns(file, rows) == [["Q", "R"]] * 4 + [["Q"], ["def f():"]]


def test_columns_of_merged_files(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    none = dict.fromkeys(("turns", "question", "prompt", "messages", "conversations"))
    rows = [{**none, "question": "Q"}, {**none, "prompt": "Q"}, {**none, "turns": ["Q"]}]
    rows.append({**none, "messages": [{"role": "user", "content": "Q"}]})
    assert turns(file, rows) == [["Q"]] * 4


@pytest.mark.parametrize("row", [{"text": "Q"}, {"turns": []}, {"turns": [1]}, {"prompt": None}, {"messages": []}, 3])
def test_a_row_of_another_form_is_an_error(tmp_path: Path, row: Any) -> None:
    file = tmp_path / "bench.jsonl"
    with pytest.raises(DataError, match=r"evaluation_files: row 2 of .*bench\.jsonl holds no prompt \("):
        read_evaluation_file(file, write(file, [FORMS[0], row]))


def test_a_missing_file_and_another_one(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    with pytest.raises(DataError, match=r"evaluation_files: there is no .*bench\.jsonl: put the file there"):
        read_evaluation_file(file, "0" * 64)
    found = write(file, FORMS)
    with pytest.raises(DataError, match=rf"bench\.jsonl has sha256 {found}, and {'0' * 64} is stated: bring"):
        read_evaluation_file(file, "0" * 64)


def test_what_could_not_be_measured_is_refused_before_the_training(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    twice = [{"id": 1, "prompt": "Q"}, {"id": 1, "prompt": "R"}]
    with pytest.raises(DataError, match=r"evaluation_files: rows 1 and 2 of .*bench\.jsonl have the same id '1'"):
        read_evaluation_file(file, write(file, twice))


def test_categories_in_turn() -> None:
    rows = [{"id": n, "category": category} for n, category in enumerate("aaaabbc")]
    ids = {count: [row["id"] for row in of_categories_in_turn(rows, count)] for count in (1, 3, 4, 6, 99)}
    assert ids == {1: [0], 3: [0, 4, 6], 4: [0, 1, 4, 6], 6: [0, 1, 2, 4, 5, 6], 99: list(range(7))}
    assert of_categories_in_turn(rows, None) == rows


def test_the_first_of_each_category() -> None:
    rows = [{"id": i, "category": c} for i, c in enumerate("abaacb")]
    assert [row["id"] for row in first_of_each_category(rows, 2)] == [0, 1, 2, 4, 5]
    assert [row["id"] for row in first_of_each_category(rows, 1)] == [0, 1, 4]
    assert first_of_each_category(rows, None) == rows
