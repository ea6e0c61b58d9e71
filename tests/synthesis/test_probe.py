"""The first request: what a server can do, and what is wrong with it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.config import Sampling
from specdec.errors import RequestRefused, ServerError
from specdec.synthesis import Endpoint, Journal, Recipe, Server, probe, synthesize, wished_fields
from specdec.synthesis.request import QUESTION
from tests.settings import sampling
from tests.synthesis.scripted import TOKENS

HOT = sampling(0.5, 100, top_p=0.9)
WISHED = {"return_token_ids": True, "top_k": -1, "min_p": 0.0}


def test_fields_that_are_refused_by_name_are_dropped(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    server = scripted(refuses=["return_token_ids", "min_p"], gives_ids=False)
    able = probe(endpoint(server), WISHED, HOT).capabilities
    assert able.fields == {"top_k": -1}
    assert sorted(able.refused) == ["min_p", "return_token_ids"]
    assert not able.token_ids


EVERY = ["return_token_ids", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
WORDS = ["the request holds a field that is not permitted", "min_p is unknown in the request {body}"]


@pytest.mark.parametrize("refused", [[], ["min_p"], ["return_token_ids", "frequency_penalty"], EVERY[1:], EVERY])
@pytest.mark.parametrize("words", WORDS)
def test_just_the_refused_fields_are_dropped_whatever_the_server_says(
    words: str, refused: list[str], scripted: Any, endpoint: Callable[..., Endpoint]
) -> None:
    server, taken = scripted(refuses=refused, refusal=words), [name for name in EVERY if name not in refused]
    able = probe(endpoint(server), wished_fields("external", None, HOT), HOT).capabilities
    assert list(able.refused) == refused
    assert list(able.fields) == taken
    assert [name for name in server.bodies[-1] if name in EVERY] == taken, "the answer is one to all of them"
    assert able.question_ids == tuple(TOKENS.prompt_ids(QUESTION))


@pytest.mark.parametrize(
    ("engine", "refused", "wish", "says"),
    [
        (
            "external",
            "top_k",
            sampling(0.5, top_k=50),
            "take top_k, and the settings ask for 50: set it to 0, or use",
        ),
        (
            "external",
            "min_p",
            sampling(0.5, min_p=0.1),
            r"take min_p, and the settings ask for 0\.1: set it to 0, or",
        ),
        (
            "transformers",
            "generation_config",
            HOT,
            r"take generation_config, .* ask for temperature 0\.5: use another",
        ),
    ],
)
def test_a_setting_that_is_refused_and_that_rows_would_claim(
    engine: str, refused: str, wish: Sampling, says: str, scripted: Any, endpoint: Callable[..., Endpoint]
) -> None:
    server = scripted(refuses=[refused])
    with pytest.raises(RequestRefused, match=f"the server at {server.url} does not {says}"):
        probe(endpoint(server), wished_fields(engine, None, wish), wish)
    neutral = sampling()
    assert probe(endpoint(server), wished_fields(engine, None, neutral), neutral).capabilities.refused == (refused,)


def test_transformers_is_never_asked_without_its_generation_config(
    scripted: Any, endpoint: Callable[..., Endpoint]
) -> None:
    """It samples all requests as the first one said; the original command refuses `return_token_ids`."""
    server = scripted(refuses=["return_token_ids"])
    probe(endpoint(server), wished_fields("transformers", None, HOT), HOT)
    assert all("generation_config" in body for body in server.bodies)


def test_token_ids_are_seen(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    able = probe(endpoint(scripted()), WISHED, HOT).capabilities
    assert able.token_ids
    assert able.question_ids
    assert able.fields == WISHED


def test_it_asks_with_the_sampling_of_the_run(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    server = scripted()
    probe(endpoint(server), WISHED, HOT)
    [body] = server.bodies
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 1)


def test_wrong_model(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    wrong = dataclasses.replace(endpoint(scripted()), model="other")
    with pytest.raises(RequestRefused, match="the model 'other': HTTP 404"):
        probe(wrong, WISHED, HOT)


def test_wrong_and_missing_key(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    server = scripted()
    with pytest.raises(RequestRefused, match="the key in SPECDEC_API_KEY is wrong") as caught:
        probe(endpoint(server, "sk-wrong-7788"), WISHED, HOT)
    assert "7788" not in str(caught.value)
    with pytest.raises(RequestRefused, match="set SPECDEC_API_KEY"):
        probe(endpoint(server, None), WISHED, HOT)


@pytest.mark.parametrize(
    ("action", "error", "says"),
    [
        ("html", RequestRefused, "a web page came instead of JSON"),
        ("garbage", RequestRefused, "not JSON"),
        ("500", ServerError, "failed at the first request: HTTP 500"),
        ("429", ServerError, "failed at the first request: HTTP 429"),
        ("400", RequestRefused, 'the model \'base\': HTTP 400: {"error": "scripted"}; another model: .*--model$'),
        *((status, RequestRefused, f"HTTP {status}: .* where it takes chat") for status in ("307", "405", "501")),
        ("reset", ServerError, "does not answer"),
    ],
)
def test_a_server_that_is_none(
    action: str, error: type[Exception], says: str, scripted: Any, endpoint: Callable[..., Endpoint]
) -> None:
    with pytest.raises(error, match=says):
        probe(endpoint(scripted(lambda _last, _n: action)), WISHED, HOT)


def test_a_server_of_another_base_is_refused_before_the_run(
    scripted: Any, endpoint: Callable[..., Endpoint], recipe: Recipe, prompts: Any, journal_folder: Path
) -> None:
    server = scripted()
    ids = tuple(recipe.tokens.prompt_ids(QUESTION)) if recipe.tokens else ()
    right = endpoint(server, question_ids=ids)
    wrong = endpoint(server, question_ids=(*ids[:-1], 77))

    def run(one: Endpoint) -> None:
        with Journal.open(journal_folder / "j.jsonl", {}) as journal:
            servers = [Server(one.url, lambda: one, one)]
            ask = {"max_failed_share": 0.0, "concurrency": 2, "say": lambda _line: None}
            synthesize(lambda: prompts(2), journal, servers, recipe, **ask)

    with pytest.raises(RequestRefused, match="renders prompts to other tokens than the base's own tokenizer"):
        run(wrong)
    assert not server.bodies
    run(right)
