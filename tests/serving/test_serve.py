"""`serve`: ready means ready, a failure says why, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, ServerEnded, ServerError
from specdec.serving import process, serve

ROOT = Path(__file__).resolve().parents[2]


def alive(note: Path) -> list[int]:
    """Those of the stand-in's processes that still run."""
    return [pid for pid in map(int, note.read_text().split()) if runs(pid)]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # a moment ago it may have been there
        return False


def all_gone(note: Path, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(note) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(note)


@pytest.fixture
def start(settings: Synthesize, tmp_path: Path) -> Callable[..., Any]:
    def start(said: list[str] | None = None, port: int | None = None, **options: Any) -> Any:
        say = said.append if said is not None else lambda _line: None
        return serve(tmp_path, settings, Environment(port=port), tmp_path / "server.log", say, **options)

    return start


def test_an_endpoint_that_has_answered(fake_engine: Any, start: Any, note: Path) -> None:
    fake_engine("good")
    said: list[str] = []
    with start(said) as servers:
        (server,) = servers
        assert len(alive(note)) == 2
        assert server.endpoint.url == server.url
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.endpoint.capabilities.token_ids
        assert server.connect() == server.endpoint
    assert all_gone(note)
    assert said[0] == "engine: transformers (synthesize.engine)"
    assert "ready" in said[-1]


def test_fields_that_it_does_not_take_are_said(fake_engine: Any, start: Any) -> None:
    fake_engine("choosy")
    said: list[str] = []
    with start(said) as (server,):
        assert said[-1] == f"{server.url} does not take: return_token_ids"
        assert list(server.endpoint.capabilities.fields) == ["generation_config"], "it is what we have started"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_is_left_after_an_error(error: type[BaseException], fake_engine: Any, start: Any, note: Path) -> None:
    fake_engine("good")
    with pytest.raises(error), start():
        raise error
    assert all_gone(note)


def test_a_server_that_ignores_sigterm_is_killed(
    fake_engine: Any, start: Any, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine("stubborn")
    monkeypatch.setattr(process.running.__wrapped__, "__defaults__", (0.3,))  # the grace
    with start():
        pass
    assert all_gone(note)


def test_the_key_is_nowhere_to_be_seen(fake_engine: Any, start: Any, note: Path, tmp_path: Path) -> None:
    fake_engine("good")
    said: list[str] = []
    with start(said) as (server,):
        key = server.endpoint.api_key.get_secret_value()
        listing = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True).stdout
    assert len(key) >= 32
    assert "fake.py" in listing
    assert key not in listing + repr(server) + "".join(said) + (tmp_path / "server.log").read_text()


def test_each_server_has_its_own_key(fake_engine: Any, start: Any) -> None:
    fake_engine("good")
    with start() as (one,), start() as (other,):
        assert one.endpoint.api_key != other.endpoint.api_key


def test_a_server_that_dies_at_the_start_says_why(fake_engine: Any, start: Any) -> None:
    fake_engine("dies")
    with (
        pytest.raises(ServerError, match=r"exit code 3\) before it was ready(.|\n)*out of imaginary memory"),
        start(),
    ):
        pass


def test_a_server_that_dies_at_the_first_request_says_why(fake_engine: Any, start: Any) -> None:
    fake_engine("dies-at-first-request")
    with pytest.raises(ServerError, match=r"does not answer(.|\n)*Segmentation fault"), start():
        pass


def test_a_server_that_is_never_ready(fake_engine: Any, start: Any, note: Path) -> None:
    fake_engine("never")
    with pytest.raises(ServerError, match=r"not ready after 1 s(.|\n)*thinking"), start(start_seconds=1.0):
        pass
    assert all_gone(note)


def test_a_server_error_in_the_block_carries_the_last_words(fake_engine: Any, start: Any, note: Path) -> None:
    fake_engine("good")

    def work() -> None:
        os.kill(int(note.read_text().split()[0]), signal.SIGKILL)
        raise ServerError("stopped answering")

    with pytest.raises(ServerError, match=r"stopped answering; its log .*server.log is empty"), start():
        work()
    assert all_gone(note), "the dead server's children too"


def test_connecting_again_to_a_server_that_has_died_is_of_no_use(fake_engine: Any, start: Any, note: Path) -> None:
    fake_engine("good")
    with start() as (server,):
        os.kill(int(note.read_text().split()[0]), signal.SIGKILL)
        with pytest.raises(ServerEnded, match=r"log .*server.log is empty$"):
            server.connect()
        with pytest.raises(ServerEnded, match=r"the server ended \(exit code 137\) and cannot be used any more; its"):
            server.connect()


def test_an_engine_that_is_not_installed(start: Any, settings: Synthesize, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(tmp_path / "nothing"))
    vllm = settings.model_copy(update={"engine": "vllm"})
    with (
        pytest.raises(ConfigError, match="not installed"),
        serve(tmp_path, vllm, Environment(), tmp_path / "l", print),
    ):
        pass


def test_a_port_in_use_is_named(fake_engine: Any, start: Any) -> None:
    fake_engine("good")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be used .*SPECDEC_PORT"), start(port=port):
            pass


PARENT = """
import os, sys, time
from pathlib import Path
from specdec.serving.process import running
script, note, log = sys.argv[1:]
with running([sys.executable, script, "0", "good", note], {**os.environ, "FAKE_KEY": "k"}, Path(log)):
    time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_the_server_ends_with_its_parent(victim: str, fake_engine: Any, note: Path, tmp_path: Path) -> None:
    fake_engine("good")  # writes the script
    command = [sys.executable, "-c", PARENT, str(tmp_path / "fake.py"), str(note), str(tmp_path / "log")]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (note.exists() and note.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    server = int(note.read_text().split()[0])
    if victim == "guard":  # then the kernel ends the server; its children are its own affair
        process = psutil.Process(server)
        process.parent().kill()
        psutil.wait_procs([process], timeout=5)
        assert server not in alive(note)
        os.kill(int(note.read_text().split()[1]), signal.SIGKILL)
    parent.kill()
    parent.wait()
    assert all_gone(note)
