"""What a vLLM with our connector does, as far as its client sees: an answer, and a file of states beside it."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from specdec.serving import states
from specdec.serving.vllm import RunningVllm, Serving, Vllm
from specdec.targets import Target

Tensors = dict[str, Tensor]


@dataclass
class StatesServer:
    """The states of `layers` of a base, changed by `change` where it gives some.

    status: of each answer. named: the file that an answer names; None: `kv_transfer_params` has none. delay: seconds
    between an answer and its file. asked: the prompts. most: requests held at once.
    """

    target: Target
    layers: tuple[int, ...]
    folder: Path
    change: Callable[[Tensors], Tensors | None] = lambda tensors: tensors
    status: int = 200
    named: Callable[[str], Any] = lambda name: name
    delay: float = 0.0
    asked: list[list[int]] = field(default_factory=list)
    held: int = 0
    most: int = 0
    writers: list[threading.Thread] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def answer(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            number = len(self.asked)
            self.asked.append(request["prompt"])
            self.held += 1
            self.most = max(self.most, self.held)
        assert request["max_tokens"] == 1
        name = f"cmpl-{number}.safetensors"
        if self.status == 200:
            self.writers.append(threading.Thread(target=self._write, args=(request["prompt"], name)))
            self.writers[-1].start()
        time.sleep(0.005)
        with self.lock:
            self.held -= 1
        if self.status != 200:
            return self.status, {"error": {"message": "no, thank you"}}
        return 200, {"choices": [{"text": ""}], "kv_transfer_params": {"states": self.named(name)}}

    def _write(self, prompt: list[int], name: str) -> None:
        time.sleep(self.delay)
        with torch.no_grad(), self.lock:
            read = self.target.forward(torch.tensor([prompt]), layers=self.layers).auxiliary
        assert read is not None
        states = read[0].unflatten(-1, (len(self.layers), -1)).contiguous()
        tensors = self.change({"states": states, "token_ids": torch.tensor(prompt)})
        if tensors is None:
            return
        save_file(tensors, self.folder / f"{name}.part")
        (self.folder / f"{name}.part").replace(self.folder / name)


@contextmanager
def serving_states(played: StatesServer) -> Iterator[RunningVllm]:
    """The server on loopback, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            assert self.headers["authorization"] == "Bearer key"
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = played.answer(request)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # a client that has left

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield RunningVllm(f"http://127.0.0.1:{server.server_port}", "key", "base")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for writer in played.writers:
            writer.join()


class Stand:
    """`running_vllm` and `find_vllm`, played. servers: what was started."""

    def __init__(self, target: Target) -> None:
        self.target, self.servers, self.servings = target, list[StatesServer](), list[Serving]()
        self.change: Callable[[Tensors], Tensors | None] = lambda tensors: tensors
        self.version = "0.32.0"

    def find(self) -> Vllm:
        return Vllm(sys.executable, self.version, "2.13.0", 0)

    @contextmanager
    def running(self, serving: Serving, log: Path, say: Any) -> Iterator[RunningVllm]:
        assert serving.speculative is not None
        layers = serving.speculative["draft_model_config"]["hf_config"]["eagle_aux_hidden_state_layer_ids"]
        given = json.loads(serving.arguments[serving.arguments.index("--kv-transfer-config") + 1])
        folder = Path(given["kv_connector_extra_config"]["shared_storage_path"])
        assert folder.stat().st_mode & 0o777 == 0o700
        self.servings.append(serving)
        self.servers.append(StatesServer(self.target, tuple(layers), folder, self.change))
        with serving_states(self.servers[-1]) as server:
            yield server

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(states, "running_vllm", self.running)
        monkeypatch.setattr(states, "find_vllm", self.find)
        monkeypatch.setattr(states, "answers", lambda _: True)
