"""Stand-ins: an engine in a process of its own and the settings that start it, and servers that run already."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.config import Synthesize
from specdec.serving import own
from specdec.serving.launch import Launch
from tests.serving.outside import Outside
from tests.settings import sampling, synthesize_settings

FAKE = """
import http.server, json, os, signal, subprocess, sys, time

port, mode, note = int(sys.argv[1]), sys.argv[2], sys.argv[3]
key = os.environ.pop("FAKE_KEY")
if mode == "dies":
    print("loading\\nRuntimeError: out of imaginary memory", flush=True)
    sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(note, "w").write(f"{os.getpid()} {child.pid}")
if mode == "never":
    print("thinking", flush=True)
    time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {})

    def do_POST(self):
        if mode == "dies-at-first-request":
            print("Segmentation fault, as it were", flush=True)
            os._exit(11)
        if self.headers["authorization"] != "Bearer " + key:
            return self.answer(401, {})
        body = self.rfile.read(int(self.headers["content-length"]))
        if mode == "choosy" and b"return_token_ids" in body:
            return self.answer(400, {"error": "no"})
        self.answer(200, {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]})

    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def settings() -> Synthesize:
    return synthesize_settings(sampling(max_tokens=8))


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where the stand-in writes its process ids."""
    return tmp_path / "pids"


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, note: Path) -> Callable[[str], None]:
    """Makes `serve` start the stand-in, in a mode."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def use(mode: str) -> None:
        def launch(_engine: str, _model: Path, _settings: Synthesize, port: int, key: str, *_: Any) -> Launch:
            command = [sys.executable, str(script), str(port), mode, str(note)]
            return Launch(command, {**os.environ, "FAKE_KEY": key})

        monkeypatch.setattr(own, "launch", launch)

    return use


@pytest.fixture
def outside() -> Iterator[Callable[..., Outside]]:
    """Makes servers that run already; keywords set their attributes."""
    made: list[Outside] = []

    def make(**attributes: Any) -> Outside:
        server = Outside()
        vars(server).update(attributes)
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()
