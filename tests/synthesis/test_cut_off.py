"""Answers that max_tokens cut: kept, dropped or continued; and what the context has no room for."""

import dataclasses
from typing import Any

import pytest

from specdec.errors import RequestRefused
from specdec.synthesis import Recipe, probe
from tests.settings import sampling
from tests.synthesis.conftest import BASE, regenerated
from tests.synthesis.scripted import END, TOKENS, Messages

LONG = "Grüße – 日本語 und 🦊🦊🦊, immer weiter."  # cuts fall into characters of two, three and four bytes
PIECE = 5


def says(messages: Messages, *_seed: int) -> str:
    """Short answers, and long ones to what asks for them."""
    return LONG if "long" in messages[-1]["content"] else "No."


def row(*questions: str) -> dict[str, Any]:
    turns = [message for text in questions for message in ({"role": "user", "content": text}, old())]
    return {"id": "a" * 64, "category": "c", "messages": turns}


def old() -> dict[str, str]:
    return {"role": "assistant", "content": "what the data said"}


@pytest.fixture
def cutting(recipe: Recipe) -> Any:
    """A recipe that cuts answers at PIECE tokens; `how` is cut_off."""

    def make(how: str, max_model_len: int | None = 100_000, tokens: Any = TOKENS, **changes: Any) -> Recipe:
        return Recipe(sampling(0.5, PIECE, cut_off=how, **changes), max_model_len, BASE, tokens)

    return make


def test_keep_ends_the_conversation_behind_the_cut(scripted: Any, go: Any, cutting: Any) -> None:
    statistics, [made] = go(scripted(says=says), [row("short?", "long?", "short!")], recipe=cutting("keep"))
    assert [s["finish_reason"] for s in made["segments"]] == ["stop", "length"]
    assert [m["content"] for m in made["messages"]][:3] == ["short?", "No.", "long?"]
    assert made["messages"][-1]["content"] == TOKENS.text(LONG.encode()[:PIECE])
    assert not statistics.dropped


def test_drop_ends_the_conversation_before_the_question(scripted: Any, go: Any, cutting: Any) -> None:
    statistics, [made] = go(scripted(says=says), [row("short?", "long?", "short!")], recipe=cutting("drop"))
    assert [m["content"] for m in made["messages"]] == ["short?", "No."]
    assert len(made["segments"]) == 1
    assert not statistics.dropped


def test_drop_leaves_out_a_row_that_has_nothing_else(scripted: Any, go: Any, cutting: Any, recorded: Any) -> None:
    server, rows = scripted(says=says), [row("long?", "short?"), {**row("short?"), "id": "b" * 64}]
    statistics, out = go(server, rows, recipe=cutting("drop"))
    assert (statistics.dropped, statistics.failures.total(), len(out)) == ({"cut_off": 1}, 0, 1)
    asked = sum(server.asked.values())
    statistics, _ = go(server, rows, recipe=cutting("drop"))
    assert (statistics.before, sum(server.asked.values())) == (2, asked), "it is not asked again"


def test_continue_goes_on_to_the_end_in_pieces(scripted: Any, go: Any, cutting: Any) -> None:
    server = scripted(says=says)
    statistics, [made] = go(server, [row("long?", "long, again?", "short")], recipe=cutting("continue"), seeds=True)
    assert [m["content"] for m in made["messages"][1::2]] == [LONG, LONG, "No."]
    for segment in made["segments"][:2]:
        assert segment["token_ids"] == [*LONG.encode(), END]
        assert segment["finish_reason"] == "stop"
    assert made["segments"][1]["prompt_token_ids"] == TOKENS.prompt_ids(made["messages"][:3])
    assert statistics.continued == 2
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds)) == len(seeds) > 10, "a piece has a seed of its own"
    assert statistics.tokens == sum(len(s["token_ids"]) for s in made["segments"])


@pytest.mark.parametrize("told", [True, False])
def test_continue_stops_where_the_context_is_full(told: bool, scripted: Any, go: Any, cutting: Any) -> None:
    """Whether we know the limit, or the server alone."""
    prompt = len(TOKENS.prompt_ids([{"role": "user", "content": "long?"}]))
    room = prompt + 4 * PIECE if not told else prompt + 4 * PIECE - 2
    server = scripted(says=says, context=room)
    _, [made] = go(server, [row("long?", "short?")], recipe=cutting("continue", room if told else None))
    [segment] = made["segments"]
    assert segment["finish_reason"] == "length"
    assert segment["token_ids"] == list(LONG.encode())[: room - prompt]
    assert len(made["messages"]) == 2


def test_continue_without_the_bases_tokenizer(scripted: Any, go: Any, cutting: Any) -> None:
    ascii_only = scripted(says=lambda *_: "a plain text of many letters")
    _, [made] = go(ascii_only, [row("?")], recipe=cutting("continue", None, tokens=None))
    assert made["messages"][-1]["content"] == "a plain text of many letters"


def test_a_server_that_gives_nothing_more_does_not_hold_the_row(scripted: Any, go: Any, cutting: Any) -> None:
    """It says `length` and gives no token, again and again."""
    server = scripted(says=lambda *_: "abcde" * 3)
    real = server._completion
    server._completion = lambda body, messages, so_far, action: real(
        {**body, "max_tokens": 0 if "prompt" in body else PIECE}, messages, so_far, action
    )
    _, [made] = go(server, [row("?")], recipe=cutting("continue"))
    assert (made["messages"][-1]["content"], made["segments"][0]["finish_reason"]) == ("abcde", "length")


def test_continue_needs_token_ids(scripted: Any, go: Any, cutting: Any) -> None:
    statistics, _ = go(scripted(says=says, gives_ids=False), [row("long?")], recipe=cutting("continue"))
    assert statistics.failures == {"no_token_ids": 1}


@pytest.mark.parametrize("options", [{"takes_ids": False}, {"gives_ids": False}])
def test_the_probe_refuses_a_server_that_cannot_continue(options: Any, scripted: Any, endpoint: Any) -> None:
    server = scripted(**options)
    with pytest.raises(RequestRefused, match=r"does not take or give token ids at /v1/completions: set it to keep"):
        probe(endpoint(server), {}, sampling(cut_off="continue"))
    asked = len(server.bodies)
    probe(endpoint(server), {}, sampling(cut_off="keep"))
    assert len(server.bodies) == asked + 1, "it is not asked for what is not needed"


def test_the_probe_sees_that_a_server_can_continue(scripted: Any, endpoint: Any) -> None:
    server = scripted()
    probe(endpoint(server), {}, sampling(cut_off="continue"))
    question, onwards = server.bodies
    ids = TOKENS.prompt_ids(question["messages"])
    assert onwards["prompt"][: len(ids)] == ids
    assert len(onwards["prompt"]) == len(ids) + question["max_tokens"]


def test_without_a_tokenizer_the_servers_ids_are_used(scripted: Any, go: Any, recipe: Recipe, prompts: Any) -> None:
    rows = prompts(3)
    _, out = go(scripted(), rows, recipe=dataclasses.replace(recipe, tokens=None, max_model_len=None))
    for prompt, made in zip(rows, out, strict=True):
        assert made["messages"] == regenerated(prompt)
        assert made["segments"][0]["token_ids"] == [
            *made["messages"][-2 * len(made["segments"]) + 1]["content"].encode(),
            END,
        ]
        assert made["token_ids_from"] == "server"


def test_without_a_tokenizer_and_ids_rows_fail_and_say_why(
    scripted: Any, go: Any, recipe: Recipe, prompts: Any, recorded: Any
) -> None:
    statistics, out = go(scripted(gives_ids=False), prompts(3), recipe=dataclasses.replace(recipe, tokens=None))
    assert (statistics.failures, out) == ({"no_token_ids": 3}, [])
    assert recorded()[0]["failed"]["message"] == "the server gave no token ids, and no base's tokenizer was named"


def test_a_server_that_says_too_long(scripted: Any, go: Any, recipe: Recipe) -> None:
    """At the first turn the row fails; at a later one the conversation ends before it."""
    first = len(TOKENS.prompt_ids([{"role": "user", "content": "short?"}]))
    server = scripted(says=says, context=first + 64)
    unknown = dataclasses.replace(recipe, tokens=None, max_model_len=None)
    rows = [row("short?", "and?"), {**row("a question " * 20), "id": "b" * 64}]
    statistics, [made] = go(server, rows, recipe=unknown)
    assert [m["content"] for m in made["messages"]] == ["short?", "No."]
    assert statistics.failures == {"too_long": 1}
    assert "maximum context length" in statistics.examples["too_long"]


def test_a_context_that_is_just_full_is_not_asked_on(scripted: Any, go: Any, cutting: Any) -> None:
    server = scripted(says=says)
    full = len(TOKENS.prompt_ids([{"role": "user", "content": "long?"}])) + PIECE
    _, [made] = go(server, [row("long?")], recipe=cutting("continue", max_model_len=full))
    assert made["segments"][0]["finish_reason"] == "length"
    assert len(server.bodies) == 1
