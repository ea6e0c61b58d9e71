"""The hub, as it answers: what a user reads for each refusal. A server on loopback plays the hub."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from specdec.targets.fetch import download_base
try:
    download_base(sys.argv[1], "v1", Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error)
"""


class Hub(ThreadingHTTPServer):
    status, code = 200, ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(server.status)
            self.send_header("X-Error-Code", server.code)
            self.end_headers()

        do_HEAD = do_GET

    server = Hub(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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
