"""`transformers serve` with a key and token ids.

`python -m specdec.serving.transformers_server MODEL [options]` runs the same server with the same options,
and these additions:

- Everything but `/health` wants `Authorization: Bearer KEY`; the key comes from the environment variable
  `SPECDEC_SERVER_KEY` (a command line can be seen in the process list) and is removed from it at once.
- With `return_token_ids: true` the ids of prompt and answer stand where vLLM puts them. A base often says a text
  in other tokens than its tokenizer would choose (about one answer in 25 of a small model), and a drafter must
  learn the tokens that were said.
- A completion takes token ids as its `prompt`, so that an answer can be continued from the tokens that were said.
- An answer whose last token ends it has `finish_reason` `stop`, also where it is `max_tokens` long.
"""

import json
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import typer
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from transformers.cli.serve import Serve
from transformers.cli.serving import server
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import CBGenerateManager, GenerateManager

KEY_VARIABLE = "SPECDEC_SERVER_KEY"
OPEN_PATH = "/health"

Next = Callable[[Request], Awaitable[Response]]


@dataclass
class Exchange:
    """Token ids of one request: `given` is a prompt that came as ids. ended: the answer's last token ends it."""

    wanted: bool
    given: list[int] | None
    prompt: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    ended: bool = False


_exchange: ContextVar[Exchange] = ContextVar("exchange")  # of the current request


def main() -> None:
    """Reads the key, changes the server's factory, and hands over to the original command."""
    key = os.environ.pop(KEY_VARIABLE, "")
    if not key:
        sys.exit(f"{KEY_VARIABLE} is not set: this server does not run without a key")
    _speak_token_ids()
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


def _speak_token_ids() -> None:
    for manager in (GenerateManager, CBGenerateManager):
        _exchange_ids(manager)
    for handler in (ChatCompletionHandler, CompletionHandler):
        _translate(handler)


def _translate(handler: Any) -> None:
    """Lets a handler of requests take and give token ids, which it knows nothing of."""
    handle = handler.handle_request

    async def handle_with_ids(self: Any, body: dict[str, Any], request_id: str) -> Response:
        exchange = Exchange(bool(body.pop("return_token_ids", False)), _take_ids(body))
        _exchange.set(exchange)
        response: Response = await handle(self, body, request_id)
        return _with_ids(response, exchange) if exchange.answer else response

    handler.handle_request = handle_with_ids


def _take_ids(body: dict[str, Any]) -> list[int] | None:
    """Takes a prompt of token ids out of the request, and leaves a text that the handler accepts."""
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or not prompt or not all(type(i) is int for i in prompt) or body.get("stream"):
        return None  # the handler refuses what is not a text
    body["prompt"] = " "
    return prompt


def _exchange_ids(manager: Any) -> None:
    """Lets a manager of generation use the ids that were given, and note those that it made."""
    generate = manager.generate_non_streaming

    async def generate_ids(self: Any, model: Any, processor: Any, inputs: Any, config: Any, **more: Any) -> Any:
        exchange = _exchange.get(None)
        if exchange and exchange.given is not None:
            inputs = _inputs(exchange.given, inputs["input_ids"], model.get_input_embeddings().num_embeddings)
        made = await generate(self, model, processor, inputs, config, **more)
        if exchange:
            exchange.prompt, exchange.answer = _flat(inputs["input_ids"]), _flat(made[2])
            exchange.ended = bool(exchange.answer) and exchange.answer[-1] in _end_ids(config)
        return made

    manager.generate_non_streaming = generate_ids


def _inputs(ids: list[int], like: Any, vocabulary: int) -> dict[str, Any]:
    """The ids in the form of `like`: a list with continuous batching, else a tensor of shape [1, T]."""
    if not all(0 <= i < vocabulary for i in ids):  # one such id ends the generation of everyone
        raise HTTPException(400, f"prompt holds a token id outside of the vocabulary (0 to {vocabulary - 1})")
    if isinstance(like, list):
        return {"input_ids": ids}
    tensor = like.new_tensor([ids])
    return {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}


def _flat(ids: Any) -> list[int]:
    """Ids as a plain list: a list with continuous batching, else a tensor of shape [1, T] or [T]."""
    return list(ids) if isinstance(ids, list) else ids.flatten().tolist()


def _end_ids(config: Any) -> list[int]:
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _with_ids(response: Response, exchange: Exchange) -> Response:
    """vLLM puts the prompt's ids at the top of a chat completion, and into the choice of a completion."""
    content = json.loads(bytes(response.body))
    choice = content["choices"][0]
    if exchange.ended and choice["finish_reason"] == "length":
        choice["finish_reason"] = "stop"
    if exchange.wanted:
        (content if "message" in choice else choice)["prompt_token_ids"] = exchange.prompt
        choice["token_ids"] = exchange.answer
    return JSONResponse(content)


if __name__ == "__main__":
    main()
