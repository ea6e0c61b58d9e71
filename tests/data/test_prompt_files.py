"""Prompt files: every form gives the same rows, ids are unique, what is wrong is named with its row."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec.data.prompt_files import read_prompt_file
from specdec.errors import DataError


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def messages(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


ANTEATER = [{"from": ("User", "Assistant")[i % 2], "value": turn} for i, turn in enumerate(["Q", "A", "R", "B"])]
SHAREGPT = [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(["Q", "A", "R"])]
FORMS: list[dict[str, Any]] = [
    {"turns": ["Q", "R"]},
    {"messages": messages("Q", "A", "R")},
    {"messages": messages("Q", "A", "R", "B")},
    {"conversations": ANTEATER, "mask": "User", "dataset": "D"},
    {"conversations": SHAREGPT},
]


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    for number, row in enumerate(read_prompt_file(write(tmp_path / "bench.jsonl", FORMS)), 1):
        assert row == {
            "id": f"bench-{number}",
            "category": "bench",
            "messages": [{"role": "user", "content": "Q"}],
            "further_turns": ["R"],
        }


@pytest.mark.parametrize("key", ["question", "prompt"])
def test_a_single_question(tmp_path: Path, key: str) -> None:
    (row,) = read_prompt_file(write(tmp_path / "x.jsonl", [{key: "Q", "answer": "A"}]))
    assert (row["messages"], row["further_turns"]) == ([{"role": "user", "content": "Q"}], [])


def test_ids_and_categories_are_the_rows_own(tmp_path: Path) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Q"]},
        {"id": "a", "category": None, "prompt": "Q"},
        {"question_id": None, "id": 7, "category": " ", "prompt": "Q"},
        {"question_id": 0, "id": "b", "prompt": "Q"},
    ]
    found = read_prompt_file(write(tmp_path / "x.jsonl", rows))
    assert [(row["id"], row["category"]) for row in found] == [("81", "writing"), ("a", "x"), ("7", "x"), ("0", "x")]


def test_a_system_turn_stays(tmp_path: Path) -> None:
    system = {"role": "system", "content": "S"}
    rows = [
        {"system": "S", "conversations": ANTEATER},
        {"messages": [system, *messages("Q", "A", "R")]},
        {"system": "S", "turns": ["Q", "R"]},
    ]
    for row in read_prompt_file(write(tmp_path / "x.jsonl", rows)):
        assert row["messages"] == [system, {"role": "user", "content": "Q"}]
        assert row["further_turns"] == ["R"]


def test_an_array_and_blank_lines(tmp_path: Path) -> None:
    array = tmp_path / "x.json"
    array.write_text(json.dumps(FORMS, indent=1))
    assert [row["id"] for row in read_prompt_file(array)] == [f"x-{i}" for i in range(1, 6)]
    lines = tmp_path / "x.jsonl"
    lines.write_text('\n{"prompt": "Q"}\n\n{"prompt": "R"}\n')
    assert [row["id"] for row in read_prompt_file(lines)] == ["x-2", "x-4"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "Q"}, "no turns, question"),
        ({"turns": []}, "no turns, question"),
        ({"turns": "Q"}, "no turns, question"),
        ({"turns": ["Q", 1]}, "no turns, question"),
        ({"turns": ["Q", " "]}, "empty turn"),
        ({"prompt": ""}, "empty turn"),
        ({"prompt": "\ud800"}, "text is not valid Unicode"),
        ({"prompt": "Q", "system": 3}, "text is not a string"),
        ({"messages": [{"role": "assistant", "content": "A"}]}, "no user turn"),
        ([], "not a JSON object"),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path: Path, row: Any, why: str) -> None:
    file = write(tmp_path / "x.jsonl", [FORMS[0], row])
    with pytest.raises(DataError, match=rf"^row 2 of .*x\.jsonl holds no prompt \({why}.*\)$"):
        read_prompt_file(file)


@pytest.mark.parametrize(("key", "value"), [("id", [1]), ("question_id", True), ("category", 1.5), ("id", "\ud800")])
def test_a_name_that_is_none_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    file = write(tmp_path / "x.jsonl", [{"prompt": "Q", key: value}])
    with pytest.raises(DataError, match=r"^the (id|category) of row 1 of .*x\.jsonl is no name \("):
        read_prompt_file(file)


def test_ids_that_repeat_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"id": 1, "prompt": "Q"}, {"prompt": "Q"}, {"id": "1", "prompt": "R"}])
    with pytest.raises(DataError, match=r"^rows 1 and 3 of .*x\.jsonl have the same id '1': give each its own$"):
        read_prompt_file(file)


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_an_empty_file_and_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.jsonl"
    with pytest.raises(DataError, match=r"^there is no file of prompts .*x\.jsonl: put it there"):
        read_prompt_file(file)
    file.write_text(content)
    with pytest.raises(DataError, match=r"x\.jsonl is empty: it must have a row for each prompt$"):
        read_prompt_file(file)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(asked=st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=5), form=st.integers(0, 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_turns_come_back_in_order(tmp_path: Path, asked: list[list[str]], form: int) -> None:
    def row(turns: list[str]) -> dict[str, Any]:
        if form == 0:
            return {"turns": turns}
        spoken = [part for turn in turns for part in (turn, "answer")]
        if form == 1:
            return {"messages": messages(*spoken)}
        return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": p} for i, p in enumerate(spoken)]}

    found = read_prompt_file(write(tmp_path / "x.jsonl", [row(turns) for turns in asked]))
    assert [[r["messages"][-1]["content"], *r["further_turns"]] for r in found] == asked
    assert len({r["id"] for r in found}) == len(asked)
    assert all(len(r["messages"]) == 1 for r in found)
