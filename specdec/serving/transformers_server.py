"""`transformers serve` with a key and token ids.

`python -m specdec.serving.transformers_server MODEL [options]` runs the same server with the same options,
and two additions:

- Everything but `/health` wants `Authorization: Bearer KEY`; the key comes from the environment variable
  `SPECDEC_SERVER_KEY` (a command line can be seen in the process list) and is removed from it at once.
- A chat completion with `return_token_ids: true` carries `prompt_token_ids` and `choices[0].token_ids`, named
  as vLLM names them. A base often says a text in other tokens than its tokenizer would choose (about one
  answer in 25 of a small model), and a drafter must learn the tokens that were said.
"""

import json
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import typer
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from transformers.cli.serve import Serve
from transformers.cli.serving import server
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import CBGenerateManager, GenerateManager

KEY_VARIABLE = "SPECDEC_SERVER_KEY"
OPEN_PATH = "/health"

Next = Callable[[Request], Awaitable[Response]]

# The ids of the completion that the current request generates: (prompt, answer).
_generated: ContextVar[list[tuple[list[int], list[int]]]] = ContextVar("generated")


def main() -> None:
    """Reads the key, changes the server's factory, and hands over to the original command."""
    key = os.environ.pop(KEY_VARIABLE, "")
    if not key:
        sys.exit(f"{KEY_VARIABLE} is not set: this server does not run without a key")
    _give_token_ids()
    _require_key(key)
    logging.getLogger("uvicorn.access").addFilter(lambda _record: False)  # one line a request, for a week
    app = typer.Typer(add_completion=False)
    app.command()(Serve)
    app()


def _require_key(key: str) -> None:
    """`Serve` looks the factory up when it starts, so replacing it in its module is enough."""
    build = server.build_server

    def build_with_key(*args: Any, **kwargs: Any) -> FastAPI:
        app = build(*args, **kwargs)
        guard(app, key)
        return app

    server.build_server = build_with_key


def guard(app: FastAPI, key: str) -> None:
    """Adds the middleware that answers 401 to whoever does not hold the key."""
    expected = f"Bearer {key}".encode()

    @app.middleware("http")
    async def require_key(request: Request, call_next: Next) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path != OPEN_PATH and not secrets.compare_digest(given, expected):
            return JSONResponse({"error": "wrong or missing API key"}, status_code=401)
        return await call_next(request)


def _give_token_ids() -> None:
    for manager in (GenerateManager, CBGenerateManager):
        _record_ids(manager)
    handle = ChatCompletionHandler.handle_request

    async def handle_with_ids(self: Any, body: dict[str, Any], request_id: str) -> Response:
        wanted = body.pop("return_token_ids", False) and not body.get("stream")
        _generated.set([])
        response: Response = await handle(self, body, request_id)
        generated = _generated.get()
        return _with_ids(response, *generated[-1]) if wanted and generated else response

    ChatCompletionHandler.handle_request = handle_with_ids


def _record_ids(manager: Any) -> None:
    """Lets a generation manager note what it was given and what it made, beside returning it."""
    generate = manager.generate_non_streaming

    async def generate_and_record(self: Any, model: Any, processor: Any, inputs: Any, *args: Any, **kw: Any) -> Any:
        made = await generate(self, model, processor, inputs, *args, **kw)
        if (record := _generated.get(None)) is not None:
            record.append((_flat(inputs["input_ids"]), _flat(made[2])))
        return made

    manager.generate_non_streaming = generate_and_record


def _flat(ids: Any) -> list[int]:
    """Ids as a plain list: a list with continuous batching, else a tensor of shape [1, T] or [T]."""
    return list(ids) if isinstance(ids, list) else ids.flatten().tolist()


def _with_ids(response: Response, prompt: list[int], answer: list[int]) -> Response:
    content = json.loads(bytes(response.body))
    content["prompt_token_ids"] = prompt
    content["choices"][0]["token_ids"] = answer
    return JSONResponse(content)


if __name__ == "__main__":
    main()
