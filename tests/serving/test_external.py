"""A server that runs already."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, RequestRefused, ServerError
from specdec.serving import serve
from specdec.serving.external import _choose, _names

BASE = Path("/models/base")


def test_a_single_model_is_taken_at_its_word() -> None:
    assert _choose(["meta/Llama"], BASE, "u") == "meta/Llama"


def test_of_several_the_one_named_like_the_folder() -> None:
    assert _choose(["other", "base"], BASE, "u") == "base"
    with pytest.raises(ConfigError, match="it serves: other, another"):
        _choose(["other", "another"], BASE, "u")


@pytest.mark.parametrize("text", ["<html>", "{}", '{"data": 3}', "[]"])
def test_a_server_without_a_list(text: str) -> None:
    assert _names(httpx.Response(200, text=text)) == []


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        (
            "http://127.0.0.1:9",
            ServerError,
            r"no server answers at http://127.0.0.1:9 \(SPECDEC_SERVER_URL\)",
        ),
        ("localhost:8000", ConfigError, "must begin with http://"),
    ],
)
def test_a_wrong_url(url: str, error: type[Exception], says: str, settings: Synthesize, tmp_path: Path) -> None:
    with pytest.raises(error, match=says), serve(tmp_path, settings, Environment(url), tmp_path / "l", print):
        pass


def test_one_that_serve_started_can_be_used_as_external(
    fake_engine: Any, settings: Synthesize, tmp_path: Path, note: Path
) -> None:
    fake_engine("good")
    with serve(tmp_path, settings, Environment(), tmp_path / "log", print) as own:
        outside = Environment(server_url=own.url + "/v1", api_key=own.api_key)
        with serve(tmp_path, settings, outside, tmp_path / "unused", print) as endpoint:
            assert endpoint.url == own.url
        wrong = Environment(server_url=own.url, api_key=SecretStr("sk-wrong-99"))
        refused = pytest.raises(RequestRefused, match="SPECDEC_API_KEY is wrong")
        with refused, serve(tmp_path, settings, wrong, tmp_path / "unused", print):
            pass
    assert not (tmp_path / "unused").exists()
