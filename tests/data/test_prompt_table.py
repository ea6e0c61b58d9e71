"""The table on the disk: what goes in comes out, in any order and any batches, and holds nothing of it in memory."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.data import prompt_table as module
from specdec.data.conversations import Conversation
from specdec.data.prompt_table import PromptTable, write_table
from specdec.data.prompts import SPLITS, Prompt, make_prompt, split_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def prompt(*turns: str) -> Prompt:
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    return make_prompt(Conversation("c", messages), 9)


def table_of(prompts: list[Prompt], folder: Path) -> PromptTable:
    return write_table(prompts, 0.3, 0.3, folder / "prompts.arrow")


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, max_size=40), st.integers(1, 7), st.integers(1, 60))
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rows: int, characters: int
) -> None:
    prompts = [prompt(text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_ROWS", rows)
        patch.setattr(module, "BATCH_CHARACTERS", characters)
        table = table_of(prompts, tmp_path_factory.getbasetemp())
        order = np.random.default_rng(0).permutation(len(texts))
        batches = list(table.batches(order))
    assert [row for _, batch in batches for row in batch] == [prompts[i].as_row() for i in order]
    assert [i for numbers, _ in batches for i in numbers] == order.tolist()
    for _, batch in batches:
        assert 0 < len(batch) <= rows
        assert sum(len(r["messages"][0]["content"]) for r in batch[1:]) < characters
    assert [SPLITS[s] for s in table.split] == [split_of(p, 0.3, 0.3) for p in prompts]
    by_id = [prompts[i].id for i in table.by_id(np.arange(len(texts)))]
    assert by_id == sorted(p.id for p in prompts)
    assert set(table.duplicates().tolist()) == {i for i, text in enumerate(texts) if text in texts[:i]}


def test_the_first_of_equal_ids_stays(tmp_path: Path) -> None:
    table = table_of([prompt("q", "a", "r"), prompt("q"), prompt("q", "b", "r"), prompt("q", "a", "r")], tmp_path)
    assert sorted(table.duplicates().tolist()) == [2, 3]


def test_ids_are_equal_in_both_their_halves(tmp_path: Path) -> None:
    ids = ("1" * 16 + "2" * 48, "1" * 16 + "3" * 48, "2" * 64, "1" * 16 + "3" * 48)
    table = table_of([dataclasses.replace(prompt("q"), id=one) for one in ids], tmp_path)
    assert table.duplicates().tolist() == [3]


def test_no_prompts(tmp_path: Path) -> None:
    table = table_of([], tmp_path)
    assert len(table) == len(table.duplicates()) == len(list(table.batches(np.arange(0)))) == 0
