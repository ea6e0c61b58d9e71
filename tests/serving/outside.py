"""A stand-in for a server that runs already, in a thread."""

import http.server
import json
import threading
import time
from typing import Any


class Outside:
    """A server that runs already. By default it is a vLLM with one model and takes any key; attributes change it.

    delay: seconds before each completion. refuses: fields of a request that it does not take.
    """

    def __init__(self) -> None:
        self.names, self.max_model_len, self.owner = ["base"], 4096, "vllm"
        self.key: str | None = None
        self.health, self.status, self.page = 200, 200, False
        self.delay, self.refuses = 0.0, list[str]()
        self.routes: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """From here on nothing listens at `url`."""
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON of a GET."""
        if path == "/health":
            return self.health, {}
        if path == "/openapi.json":
            return 200, {"paths": {route: {} for route in self.routes}}
        if path == "/version":
            return 200, {"version": "0.32.0"}
        model = {"owned_by": self.owner, "max_model_len": self.max_model_len}
        return 200, {"data": [{"id": name, **model} for name in self.names]}

    def post(self, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of a completion."""
        self.bodies.append(body)
        time.sleep(self.delay)
        if any(name in body for name in self.refuses):
            return 400, {"error": "no"}
        if self.names and body["model"] not in self.names:
            return 404, {"error": f"The model `{body['model']}` does not exist."}
        return self.status, {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        outside = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*outside.get(self.path))

            def do_POST(self) -> None:
                self.answer(*outside.post(json.loads(self.rfile.read(int(self.headers["content-length"])))))

            def answer(self, status: int, content: Any) -> None:
                guarded = outside.key and self.path.startswith("/v1")
                if guarded and self.headers["authorization"] != f"Bearer {outside.key}":
                    status, content = 401, {"error": "Unauthorized"}
                body = b"<html>Welcome</html>" if outside.page else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "text/html" if outside.page else "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
