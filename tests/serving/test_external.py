"""Servers that run already."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, RequestRefused, ServerError, SpecdecError
from specdec.serving import connect_servers, external, serve
from specdec.serving.identity import identify
from specdec.synthesis.endpoint import Endpoint, Server
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
    assert there.bodies[-1]["top_k"] == -1


@pytest.mark.parametrize(("engine", "name"), [("vllm", "vLLM"), ("transformers", "transformers serve")])
def test_one_that_does_not_say_what_it_is_gets_the_fields_that_any_server_knows(
    engine: str, name: str, outside: Make
) -> None:
    """Whatever the settings say: a server that does not know `generation_config` ignores it, and all in it."""
    there, said = outside(owner="me"), list[str]()
    (server,) = connect(there.url, engine=engine, said=said, sampling=sampling(0.5, top_k=50))
    assert server.endpoint is not None
    assert server.endpoint.engine == "external"
    assert there.bodies[-1]["top_k"] == 50
    assert "generation_config" not in there.bodies[-1]
    assert said[-1].startswith(f"{there.url} does not say that it is {name}, to which the engine is set: ")


def test_fields_that_a_server_does_not_take_are_said_once(outside: Make) -> None:
    one, later, said = outside(refuses=["min_p", "repetition_penalty"]), outside(refuses=["min_p"]), list[str]()
    later.health = 503
    servers = connect(one.url, later.url, said=said)
    told = f"{one.url} does not take: min_p, repetition_penalty"
    assert said.count(told) == 1
    later.health = 200
    for server in servers * 2:
        server.connect()
    assert said.count(told) == 1
    assert said.count(f"{later.url} does not take: min_p") == 1


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
            "does not serve /m/base or base; it serves: other, another: name it",
        ),
        (
            ["other", "another"],
            None,
            None,
            "must be told which model to use; it serves: other, another: name it",
        ),
        (
            ["other"],
            "mine",
            "/m/base",
            r"does not serve mine; it serves: other: name it \(SPECDEC_SERVER_MODEL or --m",
        ),
        ([], None, None, "must be told which model to use; it does not list its models: name it"),
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
        match=f"the server at {there.url} takes 100 tokens, and max_model_len is 256: "
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
        ({"status": 405}, RequestRefused, "HTTP 405: .*; is URL/v1/chat/completions where it takes chat completions"),
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


@contextlib.contextmanager
def dripping() -> Iterator[str]:
    """A server that answers everyone with one byte after the other, and never comes to an end."""
    over = threading.Event()

    def drip(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            while not over.wait(0.02):
                client.sendall(b" ")

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_never_comes_to_an_end_holds_nobody_up(outside: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "OTHERS_SECONDS", 0.3)
    monkeypatch.setattr(external, "MEETING_SECONDS", 0.6)
    good, said = outside(), list[str]()
    with dripping() as endless:
        began = time.monotonic()
        servers = connect(endless, good.url, said=said)
        assert time.monotonic() - began < 3
        assert [server.endpoint is None for server in servers] == [True, False]
        assert said[-1].startswith(f"the server at {endless} has not answered a first request in 0 s: set aside")
        threads = threading.active_count()
        for _ in range(3):
            with pytest.raises(ServerError, match="has not answered a first request in 1 s"):
                servers[0].connect()
        assert threading.active_count() <= threads, "each meeting that does not end would cost a thread"
        with pytest.raises(ServerError, match=f"none of the servers can be used: the server at {endless} has not an"):
            connect(endless)


def test_a_slow_server_joins_later(outside: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "OTHERS_SECONDS", 0.2)
    slow, good = outside(delay=0.6), outside()
    servers = connect(slow.url, good.url)
    assert servers[0].endpoint is None
    assert servers[0].connect().url == slow.url
    assert len(slow.bodies) == 1, "the meeting that was under way went on"


def test_a_lone_slow_server_is_waited_for(outside: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "OTHERS_SECONDS", 0.1)
    (server,) = connect(outside(delay=0.4).url)
    assert server.endpoint is not None


def test_a_refusal_counts_while_others_are_waited_for(outside: Make) -> None:
    good, refuses = outside(), outside(delay=0.3, status=400)
    with pytest.raises(RequestRefused, match=refuses.url):
        connect(good.url, refuses.url)


def test_what_is_not_a_url() -> None:
    with pytest.raises(ConfigError, match=r"^http://\[::1 is not a URL: "):
        identify(Endpoint("http://[::1", "", "auto"))


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
