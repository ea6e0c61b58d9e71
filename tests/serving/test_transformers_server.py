"""The real `transformers serve` behind our launcher: a key, token ids, the sampling that we ask for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from specdec.config import Environment, Sampling
from specdec.serving import serve
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.request import CHAT, COMPLETIONS, Draw, chat_body, completion_body
from tests.settings import sampling, synthesize_settings

HOT = sampling(temperature=1.0, max_tokens=12, cut_off="continue")
COLD = sampling(max_tokens=24, cut_off="continue")
DRAW = Draw.of(HOT, "row", 0)
HELLO = [{"role": "user", "content": "Hello"}]


def run(base_folder: Path, wish: Sampling, log: Path) -> Iterator[Endpoint]:
    with serve(base_folder, synthesize_settings(wish), Environment(concurrency=4), log, print) as (server,):
        assert server.endpoint is not None
        yield server.endpoint


@pytest.fixture(scope="module")
def endpoint(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    yield from run(base_folder, HOT, tmp_path_factory.mktemp("hot") / "server.log")


@pytest.fixture(scope="module")
def greedy(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    yield from run(base_folder, COLD, tmp_path_factory.mktemp("greedy") / "server.log")


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{endpoint.url}{path}", json=body, headers=endpoint.headers(), timeout=60)


def ask(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    response = post(endpoint, CHAT, {**chat_body(endpoint, HELLO, DRAW), **more})
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/reset", "/load_model", "/v1/models", "/docs"])
def test_everything_wants_the_key(endpoint: Endpoint, headers: dict[str, str], path: str) -> None:
    for method in ("GET", "POST"):
        assert httpx.request(method, endpoint.url + path, headers=headers, json={}).status_code == 401


def test_health_is_open(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.url}/health").status_code == 200


def test_it_gives_its_own_token_ids(endpoint: Endpoint, base_folder: Path) -> None:
    assert endpoint.capabilities.token_ids
    assert endpoint.capabilities.refused == ()
    answer, tokenizer = ask(endpoint), AutoTokenizer.from_pretrained(base_folder)
    ids = answer["choices"][0]["token_ids"]
    assert len(ids) == answer["usage"]["completion_tokens"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer["choices"][0]["message"]["content"]
    template = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert answer["prompt_token_ids"] == template


def test_without_the_wish_no_ids(endpoint: Endpoint) -> None:
    assert "prompt_token_ids" not in ask(endpoint, return_token_ids=False)


def test_a_temperature_really_samples(endpoint: Endpoint) -> None:
    """`temperature` alone leaves `transformers serve` greedy; the generation config that we send does not."""
    assert len({str(ask(endpoint)["choices"][0]["token_ids"]) for _ in range(4)}) > 1


def greedily(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    response = post(endpoint, CHAT, {**chat_body(endpoint, HELLO, Draw.of(COLD, "row", 0)), **more})
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_cut_off_answer_goes_on_from_its_exact_ids(greedy: Endpoint, cut: int) -> None:
    whole, begun = greedily(greedy), greedily(greedy, max_tokens=cut)
    said = begun["choices"][0]["token_ids"]
    assert len(said) == cut
    prompt = begun["prompt_token_ids"] + said
    body = completion_body(greedy, prompt, Draw.of(COLD, "row", 0), 24 - cut)
    choice = post(greedy, COMPLETIONS, body).json()["choices"][0]
    assert choice["prompt_token_ids"] == prompt
    assert said + choice["token_ids"] == whole["choices"][0]["token_ids"]
    assert choice["finish_reason"] == "length"


def test_an_answer_that_ends_at_its_last_token_is_not_cut_off(greedy: Endpoint) -> None:
    ids = greedily(greedy)["choices"][0]["token_ids"]
    place = next(i for i, token in enumerate(ids) if i > 1 and token not in ids[:i])
    config = json.loads(greedy.capabilities.fields["generation_config"])
    ends = json.dumps({**config, "eos_token_id": [ids[place]]})
    ended = greedily(greedy, generation_config=ends, max_tokens=place + 1)["choices"][0]
    assert ended["token_ids"] == ids[: place + 1]
    assert ended["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": []}, "must be a string"),
        ({"prompt": ["a", "b"]}, "must be a string"),
        ({"prompt": [5, 10**9]}, "outside of the vocabulary"),
        ({"prompt": [5, -1]}, "outside of the vocabulary"),
        ({"stream": True}, "must be a string"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_and_harms_nobody(
    greedy: Endpoint, change: dict[str, Any], says: str
) -> None:
    body = completion_body(greedy, [5, 6], Draw.of(COLD, "row", 0), 2)
    response = post(greedy, COMPLETIONS, {**body, **change})
    assert response.status_code == 400
    assert says in response.text
    assert post(greedy, COMPLETIONS, body).status_code == 200
