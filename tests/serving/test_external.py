"""Servers that run already."""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, RequestRefused, ServerError, SpecdecError
from specdec.serving import connect_servers, serve
from specdec.synthesis.endpoint import Server
from tests.serving.outside import Outside
from tests.settings import sampling

DEAD = "http://127.0.0.1:9"
KEY = "sk-external-5678"
MIX = sampling(temperatures=[{"temperature": 0.0, "share": 0.5}, {"temperature": 1.0, "share": 0.5}])
TRANSFORMERS = ["/load_model", "/reset"]

Make = Callable[..., Outside]


def connect(*urls: str, said: list[str] | None = None, **changes: Any) -> list[Server]:
    wanted = {"model_name": None, "base": None, "engine": "auto", "max_model_len": 256, "seeds": False, **changes}
    key, wish = wanted.pop("key", None), wanted.pop("sampling", sampling())
    return connect_servers(urls, key, wish, [].append if said is None else said.append, **wanted)


def test_a_vllm_server_is_known_by_what_it_says(outside: Make) -> None:
    said: list[str] = []
    there = outside(names=["llama"])
    (server,) = connect(there.url, said=said, seeds=True)
    assert server.endpoint is not None
    assert (server.endpoint.engine, server.endpoint.model, server.endpoint.max_model_len) == ("vllm", "llama", 4096)
    assert server.endpoint.capabilities.seeds
    assert server.endpoint.most_in_flight is None
    assert said == [f"using vLLM 0.32.0 at {there.url}, model llama"]
    assert there.bodies[-1]["top_k"] == -1
    assert server.connect() == server.endpoint


def test_transformers_serve_is_known_by_its_routes(outside: Make, tmp_path: Path) -> None:
    there = outside(routes=TRANSFORMERS, names=[])
    said: list[str] = []
    (server,) = connect(there.url, said=said, base=tmp_path)
    assert server.endpoint is not None
    assert (server.endpoint.engine, server.endpoint.model) == ("transformers", str(tmp_path))
    assert "generation_config" in there.bodies[-1]
    assert said == [f"using transformers serve at {there.url}, model {tmp_path}"]


def test_any_other_server_is_taken_too(outside: Make) -> None:
    there = outside(owner="me", max_model_len=None)
    (server,) = connect(there.url)
    assert server.endpoint is not None
    assert (server.endpoint.engine, server.endpoint.max_model_len) == ("external", None)
    (stated,) = connect(there.url, engine="vllm")
    assert stated.endpoint is not None
    assert stated.endpoint.engine == "vllm", "behind a gateway a server may not tell"


def test_another_engine_than_the_stated_one_is_refused(outside: Make) -> None:
    there = outside()
    with pytest.raises(ConfigError, match=f"set to transformers, and the server at {there.url} is vLLM 0.32.0"):
        connect(there.url, engine="transformers")


def test_a_mix_of_temperatures_is_too_much_for_transformers(outside: Make, tmp_path: Path) -> None:
    there = outside(routes=TRANSFORMERS)
    with pytest.raises(ConfigError, match=f"{there.url} is `transformers serve`, which samples .*one temperature"):
        connect(there.url, base=tmp_path, sampling=MIX)


@pytest.mark.parametrize(
    ("names", "stated", "found"),
    [
        (["meta/llama"], None, "meta/llama"),
        (["other", "base"], None, "base"),
        (["other", "another"], "another", "another"),
        ([], "another", "another"),
        ([], None, "/models/base"),
    ],
)
def test_the_name_of_the_model(names: list[str], stated: str | None, found: str, outside: Make) -> None:
    (server,) = connect(outside(names=names).url, model_name=stated, base=Path("/models/base"))
    assert server.endpoint is not None
    assert server.endpoint.model == found


@pytest.mark.parametrize(
    ("names", "stated", "base", "says"),
    [
        (
            ["other", "another"],
            None,
            "/m/base",
            "does not serve /m/base or base; it serves: other, another: set SPEC",
        ),
        (
            ["other", "another"],
            None,
            None,
            "must be told which model to use; it serves: other, another: set SPECDEC_",
        ),
        (["other"], "mine", "/m/base", "does not serve mine; it serves: other: set SPECDEC_SERVER_MODEL to"),
        ([], None, None, "must be told which model to use; it does not list its models: set SPECDEC_SERVER_MODEL"),
    ],
)
def test_a_model_that_is_not_there(
    names: list[str], stated: str | None, base: str | None, says: str, outside: Make
) -> None:
    there = outside(names=names)
    with pytest.raises(ConfigError, match=f"the server at {there.url} {says}"):
        connect(there.url, model_name=stated, base=Path(base) if base else None)


def test_a_context_that_is_too_small(outside: Make) -> None:
    there = outside(max_model_len=100)
    with pytest.raises(
        ConfigError,
        match=f"the server at {there.url} takes 100 tokens, and synthesize.max_model_len is 256: "
        "lower it, or start the server with --max-model-len 256",
    ):
        connect(there.url)
    (server,) = connect(there.url, max_model_len=None)
    assert server.endpoint is not None
    assert server.endpoint.max_model_len == 100


@pytest.mark.parametrize(
    ("attributes", "error", "says"),
    [
        ({"page": True}, RequestRefused, "the server at URL gives a web page instead of JSON: is this"),
        (
            {"key": "sk-right"},
            RequestRefused,
            r"the server at URL refused the request \(HTTP 401\): set SPECDEC_API_KEY",
        ),
        ({"health": 503}, ServerError, r"the server at URL says that it is not well \(HTTP 503 on /health\)"),
        ({"status": 500}, ServerError, "the server at URL failed at the first request: HTTP 500"),
        ({"status": 400}, RequestRefused, "the server at URL refused a request for the model 'base': HTTP 400"),
    ],
)
def test_a_server_that_cannot_be_used(
    attributes: dict[str, Any], error: type[SpecdecError], says: str, outside: Make
) -> None:
    there = outside(**attributes)
    with pytest.raises(error, match=says.replace("URL", there.url)) as caught:
        connect(there.url)
    assert "\n" not in str(caught.value)


def test_a_redirect_is_named(outside: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    there = outside()
    moved = httpx.Response(301, headers={"location": "https://elsewhere"}, request=httpx.Request("GET", there.url))
    monkeypatch.setattr(httpx.Client, "get", lambda _http, _path: moved)
    with pytest.raises(ConfigError, match=rf"the server at {there.url} redirects to another place \(HTTP 301\)"):
        connect(there.url)


def test_one_of_three_that_is_dead_is_set_aside(outside: Make) -> None:
    one, other, said = outside(), outside(), list[str]()
    servers = connect(one.url, DEAD, other.url, said=said)
    assert [server.url for server in servers] == [one.url, DEAD, other.url]
    assert [server.endpoint is None for server in servers] == [False, True, False]
    assert said[-1].startswith(f"no server answers at {DEAD}: ")
    assert said[-1].endswith(": set aside, will be tried again")
    with pytest.raises(ServerError, match=DEAD):
        servers[1].connect()


def test_one_that_was_set_aside_comes_back(outside: Make) -> None:
    one, loading = outside(), outside(health=503)
    servers = connect(one.url, loading.url)
    assert servers[1].endpoint is None
    loading.health = 200
    assert servers[1].connect().url == loading.url


def test_all_dead_names_all() -> None:
    said: list[str] = []
    with pytest.raises(ServerError, match=f"none of the servers can be used: .*{DEAD}.*; .*{DEAD}0"):
        connect(DEAD, f"{DEAD}0", said=said)
    assert said == []


def test_dead_servers_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.serving.identity.SECONDS", 0.5)
    with socket.socket() as silent:  # takes connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ServerError, match="timed out"):
            connect(*[f"http://127.0.0.1:{silent.getsockname()[1]}/{i}" for i in range(8)])
        assert time.monotonic() - began < 2


def test_a_refusal_does_not_wait_for_a_slow_server(outside: Make) -> None:
    refuses = outside(key="sk-right")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(RequestRefused, match=refuses.url):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}", refuses.url)
        assert time.monotonic() - began < 3


def test_different_names_are_told(outside: Make) -> None:
    one, other, said = outside(names=["a"]), outside(names=["b"]), list[str]()
    connect(one.url, other.url, said=said)
    assert said[-1].startswith("warning: the servers know the base by different names")
    assert f"a ({one.url})" in said[-1]
    assert f"b ({other.url})" in said[-1]


def test_the_key_is_in_no_message(outside: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, said, errors = SecretStr(KEY), list[str](), list[str]()
    servers = connect(outside(key=KEY).url, DEAD, said=said, key=key)
    for attributes in ({"key": "sk-other"}, {"page": True}, {"health": 503}, {"status": 500}, {"names": ["a", "b"]}):
        with pytest.raises(SpecdecError) as caught:
            connect(outside(**attributes).url, key=key)
        errors.append(f"{caught.value!r} {caught.value.__cause__!r}")
    assert len(errors) == 5
    assert KEY not in "".join([*said, *errors, repr(servers), caplog.text])


def test_serve_uses_those_of_the_environment(outside: Make, settings: Synthesize, tmp_path: Path) -> None:
    there, said = outside(names=["x", "mine"], key=KEY), list[str]()
    environment = Environment((there.url,), server_model="mine", server_seeds=True, api_key=SecretStr(KEY))
    auto = settings.model_copy(update={"engine": "auto"})
    with serve(tmp_path, auto, environment, tmp_path / "log", said.append) as (server,):
        assert server.endpoint is not None
        assert server.endpoint.model == "mine"
        assert server.endpoint.capabilities.seeds
    assert not (tmp_path / "log").exists(), "none was started"
    assert said == [
        "using the servers of SPECDEC_SERVER_URLS; none is started",
        f"using vLLM 0.32.0 at {there.url}, model mine",
    ]


def test_one_that_serve_started_can_be_used_as_external(
    fake_engine: Any, settings: Synthesize, tmp_path: Path
) -> None:
    fake_engine("good")
    with serve(tmp_path, settings, Environment(), tmp_path / "log", print) as (own,):
        assert own.endpoint is not None
        shared = Environment((own.url,), api_key=own.endpoint.api_key)
        with serve(tmp_path, settings, shared, tmp_path / "unused", print) as (server,):
            assert server.url == own.url
        wrong = Environment((own.url,), api_key=SecretStr("sk-wrong-99"))
        refused = pytest.raises(RequestRefused, match="SPECDEC_API_KEY is wrong")
        with refused, serve(tmp_path, settings, wrong, tmp_path / "unused", print):
            pass
    assert not (tmp_path / "unused").exists()
