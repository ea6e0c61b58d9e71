"""The first request: what a server can do, and what is wrong with it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import RequestRefused, ServerError
from specdec.synthesis import Endpoint, Journal, Recipe, Server, probe, synthesize
from specdec.synthesis.request import QUESTION
from tests.settings import sampling

HOT = sampling(0.5, 100, top_p=0.9)
WISHED = {"return_token_ids": True, "top_k": -1, "min_p": 0.0}


def test_fields_that_are_refused_by_name_are_dropped(scripted: Any, endpoint: Callable[..., Endpoint]) -> None:
    server = scripted(refuses=["return_token_ids", "min_p"], gives_ids=False)
    able = probe(endpoint(server), WISHED, HOT).capabilities
    assert able.fields == {"top_k": -1}
    assert sorted(able.refused) == ["min_p", "return_token_ids"]
    assert not able.token_ids


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
