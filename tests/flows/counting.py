"""A server that counts drafts as vLLM does, and accepts as often as it is told."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Counting:
    """`rates`: of each draft position, from the next look on; a look comes `steps` steps after the one before."""

    def __init__(self, rates: Sequence[float], steps: int = 1000) -> None:
        self.rates, self.steps, self.looks = list(rates), steps, 0
        self._drafts, self._accepted = 0, [0.0] * len(self.rates)

    def start_anew(self) -> None:
        self._drafts, self._accepted = 0, [0.0] * len(self.rates)

    def page(self) -> str:
        self.looks += 1
        self._drafts += self.steps
        self._accepted = [a + self.steps * r for a, r in zip(self._accepted, self.rates, strict=True)]
        name, labels = "vllm:spec_decode_num", 'engine="0",model_name="base"'
        lines = [
            f"{name}_drafts_total{{{labels}}} {self._drafts}",
            f"{name}_draft_tokens_total{{{labels}}} {self._drafts * len(self.rates)}",
            f"{name}_accepted_tokens_total{{{labels}}} {sum(map(round, self._accepted))}",
            f"vllm:generation_tokens_total{{{labels}}} {self._drafts + sum(map(round, self._accepted))}",
        ]
        for i, accepted in enumerate(self._accepted):
            lines.append(f'{name}_accepted_tokens_per_pos_total{{{labels},position="{i}"}} {round(accepted)}')
        return "\n".join(lines) + "\n"


@contextmanager
def serving(counting: Counting) -> Iterator[str]:
    """Its address, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = counting.page().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
