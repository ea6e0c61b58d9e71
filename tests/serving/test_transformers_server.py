"""The real `transformers serve` behind our launcher: a key, token ids, the sampling that we ask for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from specdec.config import Environment, Sampling
from specdec.serving import Endpoint, serve
from specdec.synthesis.request import chat_body
from tests.settings import synthesize_settings

HOT = Sampling(temperature=1.0, top_p=1.0, max_tokens=12)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def endpoint(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    settings = synthesize_settings(HOT)
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serve(base_folder, settings, Environment(concurrency=4), log, print) as endpoint:
        yield endpoint


def ask(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    body = {**chat_body(endpoint, HELLO, HOT), **more}
    response = httpx.post(f"{endpoint.url}/v1/chat/completions", json=body, headers=endpoint.headers(), timeout=60)
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
