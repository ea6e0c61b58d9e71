"""Answered conversations as token ids: the mask covers the assistant's turns, and nothing else."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.data.conversations import Conversation, Message
from specdec.data.packing import sequences
from specdec.data.prompts import prompt_ids
from specdec.data.rendering import render
from specdec.errors import ModelError
from specdec.targets import Target
from tests.tiny import SPECIAL, TEMPLATE

EOS = 2
CHATML = (
    "{% for m in messages %}<|user|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
FORGETFUL = (  # earlier thoughts are left out, as Qwen3 does
    "{% for m in messages %}{% set text = m['content'] if loop.last else m['content'].split('</think>')[-1] %}"
    "{{ '<|' + m['role'] + '|>' + text + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKS_FIRST = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>...{% endif %}")  # no answer begins so
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE
NO_STOP = TEMPLATE.replace("{{ m['content'] + eos_token }}{% endgeneration", "{{ m['content'] }}{% endgeneration")


def conversation(*texts: str, system: str = "") -> Conversation:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return Conversation("none", [{"role": "system", "content": system}, *turns] if system else turns)


def tokenizer_of(target: Target, template: str | None) -> Any:
    tokenizer = copy.deepcopy(target.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer: Any, *conversations: Conversation) -> list[dict[str, Any]]:
    return list(render(tokenizer, conversations, frozenset({EOS})))


def spans(row: dict[str, Any], tokenizer: Any) -> Iterator[list[tuple[bool, str]]]:
    """Each sequence of a row as stretches of (answered, text)."""
    for sequence in sequences(row):
        found: list[tuple[bool, list[int]]] = []
        for token, answered in zip(sequence.token_ids.tolist(), sequence.loss_mask.tolist(), strict=True):
            if not found or found[-1][0] != answered:
                found.append((answered, []))
            found[-1][1].append(token)
        yield [(answered, tokenizer.decode(ids)) for answered, ids in found]


def test_the_assistants_turns_are_answers_with_the_token_that_ends_them(target: Target) -> None:
    [row] = rendered(target.tokenizer, conversation("hi", "hello", "bye", "so long", system="Be brief."))
    assert list(spans(row, target.tokenizer)) == [
        [
            (False, "<|bos|><|system|>Be brief.<|eos|><|user|>hi<|eos|><|assistant|>"),
            (True, "hello<|eos|>"),
            (False, "<|user|>bye<|eos|><|assistant|>"),
            (True, "so long<|eos|>"),
        ]
    ]
    assert row["messages"][1:3] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_what_the_template_writes_behind_the_stop_token_is_no_answer(target: Target) -> None:
    tokenizer = tokenizer_of(target, CHATML)
    [row] = rendered(tokenizer, conversation("hi", "hello\n", "bye", "so long"))
    assert list(spans(row, tokenizer)) == [
        [
            (False, "<|user|>user\nhi<|eos|>\n<|user|>assistant\n"),
            (True, "hello\n<|eos|>"),
            (False, "\n<|user|>user\nbye<|eos|>\n<|user|>assistant\n"),
            (True, "so long<|eos|>"),
        ]
    ]


def test_any_of_several_stop_tokens_ends_an_answer(target: Target) -> None:
    tokenizer = tokenizer_of(target, CHATML.replace("{{ eos_token }}", "<|system|>"))
    [row] = list(render(tokenizer, [conversation("hi", "hello")], frozenset({EOS, SPECIAL.index("<|system|>")})))
    assert tokenizer.decode(row["segments"][0]["token_ids"]) == "hello<|system|>"


def test_an_answer_that_nothing_ends_goes_to_the_templates_end(target: Target) -> None:
    tokenizer = tokenizer_of(target, NO_STOP)
    [row] = rendered(tokenizer, conversation("hi", "hello", "bye"))
    assert next(spans(row, tokenizer))[1] == (True, "hello")


def test_a_question_at_the_end_is_left_out(target: Target) -> None:
    [row] = rendered(target.tokenizer, conversation("hi", "hello", "and?"))
    [sequence] = spans(row, target.tokenizer)
    assert sequence[-1] == (True, "hello<|eos|>")


def test_conversations_without_an_answer_are_left_out(target: Target) -> None:
    given_ones = [conversation("hi"), conversation("a", "b"), conversation("hi", system="Be brief.")]
    [row] = rendered(target.tokenizer, *given_ones)
    assert row["messages"] == given_ones[1].messages


def test_a_template_that_rewrites_history_gives_each_turn_what_the_base_would_read(target: Target) -> None:
    """The second prompt lacks the first answer's thoughts: a sequence of its own, whose past is no answer."""
    tokenizer = tokenizer_of(target, FORGETFUL)
    [row] = rendered(tokenizer, conversation("hi", "hm</think>hello", "bye", "uh</think>so long"))
    assert list(spans(row, tokenizer)) == [
        [(False, "<|user|>hi<|eos|><|assistant|>"), (True, "hm</think>hello<|eos|>")],
        [
            (False, "<|user|>hi<|eos|><|assistant|>hello<|eos|><|user|>bye<|eos|><|assistant|>"),
            (True, "uh</think>so long<|eos|>"),
        ],
    ]


def test_an_answer_that_does_not_follow_its_prompt_is_left_out(target: Target) -> None:
    tokenizer = tokenizer_of(target, THINKS_FIRST)
    [row] = rendered(tokenizer, conversation("hi", "hello"), conversation("hi", "hello", "bye", "...so long"))
    assert list(spans(row, tokenizer)) == [
        [
            (False, "<|bos|><|user|>hi<|eos|><|assistant|>hello<|eos|><|user|>bye<|eos|><|assistant|>..."),
            (True, "so long<|eos|>"),
        ]
    ]


def test_a_conversation_that_the_template_refuses_is_left_out(target: Target) -> None:
    tokenizer = tokenizer_of(target, NO_SYSTEM)
    [row] = rendered(tokenizer, conversation("hi", "hello", system="Be brief."), conversation("hi", "hello"))
    assert row["messages"][0]["role"] == "user"


def test_a_tokenizer_without_a_template_is_named(target: Target) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        rendered(tokenizer_of(target, None), conversation("hi", "hello"))


def test_long_conversations_are_no_news(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    """The tokenizer would warn of each that is longer than the model; packing cuts them, and says so."""
    tokenizer = tokenizer_of(target, TEMPLATE)
    tokenizer.model_max_length = 8
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        [row] = rendered(tokenizer, conversation("hi", "hello" * 9))
    finally:
        logger.removeHandler(caplog.handler)
    assert len(row["segments"][0]["token_ids"]) == 46
    assert not caplog.records


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
PLAIN = TEXT.filter(lambda text: not any(token in text for token in SPECIAL))


@given(texts=st.lists(PLAIN, min_size=2, max_size=7), system=st.none() | PLAIN)
def test_any_text_is_masked_exactly(target: Target, texts: list[str], system: str | None) -> None:
    given_one = conversation(*texts, system=system or "")
    [row] = rendered(target.tokenizer, given_one)
    answered = [m["content"] for m in given_one.messages if m["role"] == "assistant"]
    [sequence] = spans(row, target.tokenizer)
    assert [text for is_answer, text in sequence if is_answer] == [f"{answer}<|eos|>" for answer in answered]
    answered_up_to = given_one.messages[: -1 if len(texts) % 2 else None]
    assert "".join(text for _, text in sequence) == written(answered_up_to)


@given(texts=st.lists(TEXT | st.sampled_from(SPECIAL), min_size=2, max_size=5))
def test_whatever_a_text_holds_an_answer_stands_behind_its_prompt(target: Target, texts: list[str]) -> None:
    """Special tokens too, written as text: an answer ends at the first one that would have ended it."""
    given_one = conversation(*texts)
    [row] = rendered(target.tokenizer, given_one)
    places = [i for i, m in enumerate(given_one.messages) if m["role"] == "assistant"]
    for place, segment in zip(places, row["segments"], strict=True):
        assert segment["prompt_token_ids"] == prompt_ids(target.tokenizer, given_one.messages[:place])
        assert segment["token_ids"].index(EOS) == len(segment["token_ids"]) - 1
        said = target.tokenizer.decode(segment["token_ids"])
        assert f"{texts[place]}<|eos|>".startswith(said)


def written(messages: list[Message]) -> str:
    """What the test's template makes of a conversation."""
    return "<|bos|>" + "".join(f"<|{m['role']}|>{m['content']}<|eos|>" for m in messages)
