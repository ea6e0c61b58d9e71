"""Stop strings end an answer where transformers ends it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation import StopStringCriteria

from specdec.decoding import Stop, generate
from specdec.errors import ConfigError
from specdec.targets import Target
from tests.decoding.oracle import Oracle

PROMPT = [1, 4, 40, 41, 42, 2, 5]


def by_transformers(tokenizer: Any, tokens: list[int], strings: list[str]) -> list[int]:
    stops = StopStringCriteria(tokenizer, strings)
    ends = (i for i in range(1, len(tokens) + 1) if bool(stops(torch.tensor([tokens[:i]]), None)[0]))  # type: ignore[arg-type]
    return tokens[: next(ends, len(tokens))]


@given(
    tokens=st.lists(st.integers(70, 75) | st.integers(6, 261), min_size=1, max_size=30),
    string=st.text("@ABCD", min_size=1, max_size=3) | st.sampled_from(["é", "ab", "\n\n"]),
    pieces=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
@settings(max_examples=150, deadline=None)
def test_as_transformers_does(target: Target, tokens: list[int], string: str, pieces: list[int]) -> None:
    stop = Stop(frozenset(), (string,), target.tokenizer)
    made: list[int] = []
    rest = tokens
    for piece in pieces:
        said, done = stop.cut(made, rest[:piece], 10**6)
        made += said
        rest = rest[piece:]
        if done or not rest:
            break
    assert made == by_transformers(target.tokenizer, tokens, [string])


@pytest.mark.parametrize("length", [1, 3, 4])
def test_inside_a_draft(target: Target, length: int) -> None:
    truth = generate(target, None, PROMPT, 30).token_ids
    text = target.tokenizer.decode(truth[8:10])
    stop = Stop(target.stop_ids, (text,), target.tokenizer)
    plain = generate(target, None, PROMPT, 30, stop=stop).token_ids
    assert plain == by_transformers(target.tokenizer, truth, [text])
    assert len(plain) <= 10
    made = generate(target, Oracle(truth, [], length, target.vocab_size), PROMPT, 30, stop=stop)
    assert made.token_ids == plain


def test_a_space_in_front_is_seen_at_the_answers_start() -> None:
    """As SentencePiece has it: a text that begins with a word decodes without the space in front of it."""
    letters = {letter: i for i, letter in enumerate("abcdef▁")}
    inner = Tokenizer(models.BPE(vocab={**letters, "▁a": 7, "▁b": 8}, merges=[("▁", "a"), ("▁", "b")]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    assert tokenizer.decode([8, 2]) == "bc"
    stop = Stop(frozenset(), (" b",), tokenizer)
    for made, tokens in (([], [8, 2]), ([7], [2, 8, 2]), ([], [1, 8, 2])):
        end = tokens.index(8) + 1
        assert stop.cut(made, tokens, 9) == (tokens[:end], True)
        assert by_transformers(tokenizer, [*made, *tokens], [" b"]) == [*made, *tokens[:end]]
    assert stop.cut([], [1, 2], 9) == ([1, 2], False)
    ahead = Stop(frozenset(), ("ab",), tokenizer)  # what is decoded in front of an answer is none of it
    assert ahead.cut([], [1, 2], 9) == ([1, 2], False)
    assert ahead.cut([], [2, 0, 1, 2], 9) == ([2, 0, 1], True)


def test_the_limit_comes_first(target: Target) -> None:
    stop = Stop(frozenset({7}), ("AB",), target.tokenizer)
    assert stop.cut([], [5, 7, 9], 1) == ([5], False)
    assert stop.cut([], [5, 7, 9], 3) == ([5, 7], True)
    assert stop.cut([], [], 3) == ([], False)


def test_an_empty_string_is_refused(target: Target) -> None:
    with pytest.raises(ConfigError, match="a stop string is empty"):
        Stop(frozenset(), ("",), target.tokenizer)
