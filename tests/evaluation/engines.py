"""A stand-in for a vLLM server on loopback: streams answers as vLLM does, and counts its drafts as vLLM does."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-of-the-benchmark"


@dataclass
class FakeVllm:
    """Answers a prompt [n, ...] with the tokens n+1, n+2, ... Each step accepts as many drafts as `script` says in
    turn. seconds: that a step takes. wrong: prompts (by their first token) whose answer's third token is another."""

    length: int
    script: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: tuple[int, ...] = ()
    dies_after: int | None = None
    late: float = 0.0  # until the last answer is counted
    steals: int = 0  # tokens that others had of it
    without_ids: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.counts = {"drafts": 0, "drafted": 0, "accepted": 0, "generated": self.steals}
        self.at = [0] * (max(self.script, default=0))
        self.step = 0

    def answer(self, first: int) -> Iterator[list[int]]:
        """The tokens of each step."""
        ids = [first + 1 + i for i in range(self.length)]
        if first in self.wrong:
            ids[2] += 1000
        yield ids[:1]
        done = 1
        while done < len(ids):
            accepted = 0
            with self.lock:
                if self.script:
                    accepted = self.script[self.step % len(self.script)]
                    self.step += 1
                    self.counts["drafts"] += 1
                    self.counts["drafted"] += len(self.at)
                    self.counts["accepted"] += accepted
                    for i in range(accepted):
                        self.at[i] += 1
            yield ids[done : done + 1 + accepted]
            done += 1 + accepted

    def metrics(self) -> str:
        names = {"drafts": "num_drafts", "drafted": "num_draft_tokens", "accepted": "num_accepted_tokens"}
        with self.lock:
            lines = [f'vllm:spec_decode_{n}_total{{engine="0"}} {self.counts[k]}.0' for k, n in names.items()]
            per_position = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
            lines += [f'{per_position}{{engine="0",position="{i}"}} {n}.0' for i, n in enumerate(self.at)]
            lines.append(f'vllm:generation_tokens_total{{engine="0"}} {self.counts["generated"]}.0')
        return "\n".join(lines) + "\n"

    def count(self, tokens: int) -> None:
        time.sleep(self.late)
        with self.lock:
            self.counts["generated"] += tokens


@contextmanager
def listening(fake: FakeVllm) -> Iterator[str]:
    """The URL of `fake`, for as long as the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.whole(200, fake.metrics())

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.headers["authorization"] != f"Bearer {KEY}":
                return self.whole(401, "{}")
            with fake.lock:
                fake.requests.append(asked)
                fake.in_flight += 1
                fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            if fake.dies_after is not None and len(fake.requests) > fake.dies_after:
                return self.whole(500, '{"error": "EngineCore died"}')
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            total = 0
            for ids in fake.answer(asked["prompt"][0]):
                time.sleep(fake.seconds)
                total += len(ids)
                self.event({"choices": [{"text": "x"} if fake.without_ids else {"text": "x", "token_ids": ids}]})
            with fake.lock:
                fake.in_flight -= 1
            self.chunk("data: [DONE]\n\n")
            self.chunk("")
            fake.count(total)

        def event(self, content: Any) -> None:
            self.chunk(f"data: {json.dumps(content)}\n\n")

        def chunk(self, text: str) -> None:
            self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())

        def whole(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
