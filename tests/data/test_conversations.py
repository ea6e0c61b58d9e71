"""The parser: every accepted form, every kind of bad row, with its line number."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.data.conversations import BadRow, RowCount, parse_line, read_conversations
from specdec.errors import DataError


def anteater(*turns: str, system: str = "", **more: Any) -> dict[str, Any]:
    roles = ("User", "Assistant")
    rows = [{"from": roles[i % 2], "value": t, "label": None} for i, t in enumerate(turns)]
    return {"system": system, "mask": "User", "conversations": rows, **more}


def parse(row: Any) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in parse_line(json.dumps(row).encode()).messages]


def test_the_three_forms() -> None:
    wanted = [("system", "S"), ("user", "Q"), ("assistant", "A")]
    assert parse(anteater("Q", "A", system="S")) == wanted
    sharegpt = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A"},
    ]
    assert parse({"conversations": sharegpt}) == wanted
    assert parse({"messages": [{"role": r, "content": c} for r, c in wanted]}) == wanted


def test_roles_of_sharegpt() -> None:
    for name in ("gpt", "chatgpt", "bing", "bard", "Assistant"):
        turns = [{"from": "human", "value": "Q"}, {"from": name, "value": "A"}]
        assert parse({"conversations": turns}) == [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize("system", [[], [{"from": "system", "value": "S"}]])
def test_an_answer_without_its_question_is_left_out(system: list[dict[str, str]]) -> None:
    turns = [{"from": "gpt", "value": "A0"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    found = parse({"conversations": system + turns})
    assert found == [("system", "S")] * len(system) + [("user", "Q"), ("assistant", "A")]
    with pytest.raises(BadRow, match="roles out of order"):
        parse({"conversations": turns[:1] + turns})


def test_an_empty_system_turn_is_none() -> None:
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Q"}]
    assert parse({"messages": turns}) == [("user", "Q")]


def test_an_empty_system_turn_hides_no_system_prompt_of_the_row() -> None:
    turns = [{"role": "system", "content": " "}, {"role": "user", "content": "Q"}]
    assert parse({"system": "S", "messages": turns}) == [("system", "S"), ("user", "Q")]
    turns[0]["content"] = "T"
    assert parse({"system": "S", "messages": turns}) == [("system", "T"), ("user", "Q")]


NULLS = {"from": None, "value": None, "role": None, "content": None}


@pytest.mark.parametrize("other", [None, []])
def test_rows_of_merged_datasets(other: Any) -> None:
    """Every row has the columns of all, and null in those of the others."""
    wanted = [("user", "Q"), ("assistant", "A")]
    messages = [{**NULLS, "role": r, "content": c} for r, c in wanted]
    assert parse({"conversations": other, "messages": messages, "system": None}) == wanted
    conversations = [{**NULLS, "from": "human", "value": "Q"}, {**NULLS, "from": "gpt", "value": "A"}]
    assert parse({"conversations": conversations, "messages": other}) == wanted
    with pytest.raises(BadRow, match="no conversation"):
        parse({"conversations": other, "messages": other})
    with pytest.raises(BadRow, match="unknown role"):
        parse({"messages": [NULLS]})


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert parse({"messages": [{"role": "user", "content": parts}]}) == [("user", "one\ntwo")]


def test_category_and_empty_system() -> None:
    parsed = parse_line(json.dumps(anteater("Q", system=" ", dataset="math")).encode())
    assert parsed.category == "math"
    assert [m["role"] for m in parsed.messages] == ["user"]


BAD = {
    "not JSON": "{",
    "not a JSON object": "[1]",
    "no conversation": json.dumps({"text": "hello"}),
    "empty turn": json.dumps(anteater("Q", " ")),
    "text is not a string": json.dumps({"conversations": [{"from": "User", "value": 3}]}),
    "turn is not an object": json.dumps({"conversations": ["hello"]}),
    "unknown role": json.dumps({"conversations": [{"from": "Robot", "value": "hi"}]}),
    "turn of a tool": json.dumps({"conversations": [{"from": "tool", "value": "{}"}]}),
    "no user turn": json.dumps({"messages": [{"role": "assistant", "content": "hi"}]}),
    "roles out of order": json.dumps({"messages": [{"role": "user", "content": "hi"}] * 2}),
    "content that is not all text": json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    "text is not valid Unicode": json.dumps(anteater("\ud800")),
}
NO_UNICODE = [anteater("Q", system="a\udc00"), anteater("Q", dataset="\ud800"), {**anteater("Q"), "type": "\ud800"}]


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named(kind: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_line(BAD[kind].encode())
    assert caught.value.kind == kind


@pytest.mark.parametrize("row", NO_UNICODE)
def test_half_a_surrogate_anywhere(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="text is not valid Unicode"):
        parse_line(json.dumps(row).encode())


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nested_beyond_reason(opening: bytes) -> None:
    with pytest.raises(BadRow, match="not JSON"):
        parse_line(opening * 200_000)


def test_bad_rows_are_counted_and_listed_by_line(tmp_path: Path) -> None:
    good = json.dumps(anteater("Q", "A"))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([good, "{", "", good, BAD["empty turn"]]) + "\n")
    count = RowCount()
    assert len(list(read_conversations(file, count))) == 2
    assert count.rows == 4
    assert count.bad_lines == [(2, "not JSON"), (5, "empty turn")]
    assert count.bad_share == 0.5


def test_an_array_is_read_as_lines_are(tmp_path: Path) -> None:
    rows = [json.dumps(anteater("Q", "A")), '{"a": tru}', *(row for row in BAD.values() if row != "{")]
    (tmp_path / "lines").write_text("\n".join(rows))
    (tmp_path / "array").write_text(f"[{', '.join(rows)}]")
    lines, array = RowCount(), RowCount()
    assert list(read_conversations(tmp_path / "lines", lines)) == list(read_conversations(tmp_path / "array", array))
    assert lines == array
    assert array.bad_lines[0] == (2, "not JSON")


def test_a_pointer_is_no_data(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3\n")
    with pytest.raises(DataError, match="is a Git LFS pointer"):
        list(read_conversations(file, RowCount()))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=50))
def test_any_text_survives(turns: list[str]) -> None:
    assert [text for _, text in parse(anteater(*turns))] == turns
