"""Prompts: what is kept, and that a row's split depends on nothing but the row."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.data.conversations import Conversation
from specdec.data.prompts import Prompt, make_prompt, prompt_ids, split_of
from specdec.errors import DataError, ModelError
from specdec.targets import Target
from tests.tiny import write_tokenizer


def talk(*turns: str, system: str | None = None) -> Conversation:
    messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)]
    return Conversation("c", [{"role": "system", "content": system}, *messages] if system else messages)


def contents(prompt: Prompt) -> list[str]:
    return [m["content"] for m in prompt.messages]


def test_a_prompt_ends_with_the_last_kept_user_turn() -> None:
    assert contents(make_prompt(talk("q1", "a1", "q2", "a2", "q3", system="S"), 2)) == ["S", "q1", "a1", "q2"]
    assert contents(make_prompt(talk("q1", "a1"), 3)) == ["q1"]


def test_the_id_is_of_what_is_asked() -> None:
    assert make_prompt(talk("q", "a", "r"), 2).id == make_prompt(talk("q", "another", "r"), 2).id
    assert make_prompt(talk("q", "a", "r"), 2).id != make_prompt(talk("q", "a", "s"), 2).id
    assert make_prompt(talk("q"), 1).id != make_prompt(talk("q", system="S"), 1).id


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True))
def test_a_split_never_changes_when_rows_are_added(openings: list[str]) -> None:
    prompts = [make_prompt(talk(o), 1) for o in openings]
    alone = [split_of(p, 0.3, 0.3) for p in prompts]
    assert alone == [split_of(p, 0.3, 0.3) for p in reversed(prompts)][::-1]
    # A longer conversation that opens alike sits on the same side.
    assert alone == [split_of(make_prompt(talk(o, "a", "more"), 2), 0.3, 0.3) for o in openings]


def test_shares_are_met() -> None:
    counts = Counter(split_of(make_prompt(talk(str(i)), 1), 0.1, 0.2) for i in range(4000))
    assert 0.08 < counts["validation"] / 4000 < 0.12
    assert 0.17 < counts["test"] / 4000 < 0.23


def test_a_conversation_that_the_template_refuses_is_one_line(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no\\nsystem') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    user = {"role": "user", "content": "What is a list?"}
    assert prompt_ids(tokenizer, [user])
    with pytest.raises(DataError, match=r"\(system, user\) that begins 'Be brief\.': no system: leave it out"):
        prompt_ids(tokenizer, [{"role": "system", "content": "Be brief."}, user])
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        prompt_ids(tokenizer, [user])


def test_prompt_ids_are_the_templates(target: Target) -> None:
    tokenizer: Any = target.tokenizer
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "hé"}])
    assert tokenizer.decode(ids) == "<|bos|><|user|>hé<|eos|><|assistant|>"
