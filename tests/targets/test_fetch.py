"""The hub, as it answers: what a user reads for each refusal. A server on loopback plays the hub."""

import functools
import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from specdec.errors import TransientError
from specdec.targets import fetch
from specdec.targets.fetch import download_base, record_base

COMMIT = "c" * 40
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from specdec.targets.fetch import download_base
try:
    download_base(sys.argv[1], "v1", Path(sys.argv[2]), lambda line: None)
except Exception as error:
    print(type(error).__name__, error)
"""


class Hub(ThreadingHTTPServer):
    """status: of every answer. files: of the repository; where there are any, status is that of their content, and
    a status of 0 breaks the connection off half way."""

    status, code = 200, ""
    files: tuple[str, ...] = ()


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if server.files and self.path.startswith("/api/"):
                files = [{"rfilename": name} for name in server.files]
                tree = [{"type": "file", "path": name, "size": 1000, "oid": "0" * 40} for name in server.files]
                answer = json.dumps(tree if "/tree/" in self.path else {"id": "m", "sha": COMMIT, "siblings": files})
                self.answer(200, len(answer))
                self.wfile.write(answer.encode())
            elif server.files and (self.command == "HEAD" or not server.status):
                self.answer(200, 1000)
                if self.command == "GET":
                    self.wfile.write(b"{" * 500)
            else:
                self.answer(server.status, 0)

        def answer(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", server.code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"an-etag"')
            self.send_header("Content-Length", str(length))
            self.end_headers()

        do_HEAD = do_GET

    server = Hub(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.soak
@pytest.mark.parametrize(
    ("status", "told"),
    [
        (0, "TransientError the download of org/model broke off"),
        (500, "TransientError org/model at v1 could not be fetched"),
        (418, "ModelError org/model at v1 could not be fetched"),
    ],
)
def test_a_download_that_breaks_off(hub: Hub, tmp_path: Path, status: int, told: str) -> None:
    hub.status, hub.files = status, ("config.json",)
    assert download(f"http://127.0.0.1:{hub.server_port}", tmp_path).startswith(told)


def test_too_many_requests_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = importlib.import_module(HfHubHTTPError.__bases__[0].__module__)
    response = client.Response(429, request=client.Request("GET", "https://example.org"))

    def refuse(*_: object, **__: object) -> str:  # at once: the hub's client itself tries for half a minute
        raise HfHubHTTPError("slow down", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(TransientError, match="could not be fetched: slow down"):
        download_base("org/model", "v1", tmp_path / "out", print)


def test_a_long_download_is_told(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(base_folder))
    monkeypatch.setattr(fetch, "while_waiting", functools.partial(fetch.while_waiting, every=0.001))
    said: list[str] = []
    monkeypatch.setattr(fetch, "finish", lambda _: time.sleep(0.1))
    download_base("org/model", "v1", tmp_path / "out", said.append)
    record_base(tmp_path / "out", "org/model", "v1", "tiny", said.append)
    assert f"copying {base_folder.name} (0 s)" in said
    assert "loading and hashing tiny (0 s)" in said


def download(endpoint: str, folder: Path, repository: str = "org/model") -> str:
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, repository, str(folder / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not (folder / "out").exists()
    return done.stdout


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (404, "RepoNotFound", "ModelError 'org/model' is neither a folder here nor a model on the hub"),
        (404, "RevisionNotFound", "ModelError org/model has no revision 'v1'"),
        (403, "GatedRepo", "ModelError 'org/model' is neither a folder here nor a model on the hub"),
        (503, "", "TransientError the Hugging Face hub could not be reached"),
    ],
)
def test_refusals(hub: Hub, tmp_path: Path, status: int, code: str, told: str) -> None:
    hub.status, hub.code = status, code
    assert download(f"http://127.0.0.1:{hub.server_port}", tmp_path).startswith(told)


def test_out_of_reach_and_no_such_folder(tmp_path: Path) -> None:
    assert download("http://127.0.0.1:9", tmp_path).startswith("TransientError the Hugging Face hub could not")
    told = download("http://127.0.0.1:9", tmp_path, "/no/such/folder")
    assert told.startswith("ModelError '/no/such/folder' is neither a folder here nor a model")
