"""Lengths are exactly the tokens the base reads; every length falls into one bin."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from specdec.data import lengths, prompt_table
from specdec.data.conversations import Conversation
from specdec.data.lengths import REFUSED, UNKNOWN, length_bins, length_table, percentiles, token_lengths
from specdec.data.prompt_table import write_table
from specdec.data.prompts import SPLITS, make_prompt
from specdec.errors import ModelError
from specdec.targets import load_tokenizer
from tests.tiny import SPECIAL, TEMPLATE

REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEXTS = ["hé", "<|bos|>said", "x" * 300, "日本", " ", "a\nb"] * 4


def test_lengths_are_those_of_every_prompt_alone(base_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Also with a tokenizer that would put special tokens around a text by itself, as Llama's does."""
    monkeypatch.setattr(prompt_table, "BATCH_ROWS", 5)
    tokenizer = load_tokenizer(base_folder)
    start = (SPECIAL[1], tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{start[0]} $A", None, [start])
    assert len(tokenizer("a")["input_ids"]) == 2
    system = [{"role": "system", "content": "S"}]
    talks = [(system if i % 3 == 0 else []) + [{"role": "user", "content": t}] for i, t in enumerate(TEXTS)]
    table = write_table((make_prompt(Conversation("c", t), 1) for t in talks), 0.3, 0.3, tmp_path / "p.arrow")
    asked = np.arange(2, len(talks))

    def alone(talk: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)["input_ids"])

    for template in (TEMPLATE, REFUSING + TEMPLATE):
        tokenizer.chat_template = template
        refuses = [template != TEMPLATE and talk[0]["role"] == "system" for talk in talks]
        found = token_lengths(table, asked, tokenizer, print)
        wanted = [REFUSED if no else alone(talk) for talk, no in zip(talks, refuses, strict=True)]
        assert found.tolist() == [UNKNOWN, UNKNOWN, *wanted[2:]]


@pytest.mark.parametrize(
    "raises",
    ["{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ messages[0].content.encode('ascii') }}"],
)
def test_whatever_a_template_raises_refuses_the_prompt(base_folder: Path, tmp_path: Path, raises: str) -> None:
    tokenizer = load_tokenizer(base_folder)
    tokenizer.chat_template = "{% if 'é' in messages[0]['content'] %}" + raises + "{% endif %}" + TEMPLATE
    talks = [[{"role": "user", "content": text}] for text in ("a", "é", "b", "c é")]
    table = write_table((make_prompt(Conversation("c", t), 1) for t in talks), 0.3, 0.3, tmp_path / "p.arrow")
    said: list[str] = []
    found = token_lengths(table, np.arange(4), tokenizer, said.append)
    assert (found == REFUSED).tolist() == [False, True, False, True]
    assert "prompts that the chat template refuses: 2, the first with " in said[-1]


def test_what_the_template_does_not_raise_is_no_refusal(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(base_folder)
    talk = [{"role": "user", "content": "a"}]
    table = write_table((make_prompt(Conversation("c", t), 1) for t in [talk] * 2), 0.3, 0.3, tmp_path / "p.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(lengths, "batch_prompt_ids", lambda *_: [].pop())
        with pytest.raises(IndexError):
            token_lengths(table, np.arange(2), tokenizer, print)
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        token_lengths(table, np.arange(2), tokenizer, print)


@given(st.integers(1, 5000), st.integers(1, 50_000))
def test_every_length_is_in_one_bin_and_the_limit_ends_one(limit: int, length: int) -> None:
    bins = length_bins(limit)
    assert sum(low <= length <= (high or np.inf) for low, high in bins) == 1
    assert limit in [high for _, high in bins]
    assert all(low <= (high or low) for low, high in bins)


def test_the_table_counts_each_prompt_once() -> None:
    random = np.random.default_rng(0)
    lengths, split = random.integers(-1, 90, 500), random.integers(0, 3, 500)
    kept = (lengths > 0) & (lengths <= 20)
    table = length_table(lengths, split, kept, 20)
    for place, name in enumerate(SPLITS):
        here = split == place
        assert sum(row[name]["prompts"] for row in table) == (here & (lengths > 0)).sum()
        assert sum(row[name]["kept"] for row in table) == (here & kept).sum()
        assert sum(row[name]["kept"] for row in table if row["from"] > 20) == 0


def test_percentiles() -> None:
    assert percentiles(np.arange(1, 101)) == pytest.approx({"p50": 50.5, "p90": 90.1, "p99": 99.01, "max": 100})
