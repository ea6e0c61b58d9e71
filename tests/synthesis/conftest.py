"""A scripted HTTP server: deterministic answers, and whatever misfortune a plan asks for."""

import asyncio
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from specdec.synthesis import Capabilities, Endpoint, Patience, Recipe, Server, probe
from tests.settings import sampling

KEY = "sk-scripted-3f2a"
BASE = {"weights": "w" * 64, "tokenizer": "t" * 64, "chat_template": "c" * 64}
GREEDY = sampling()

# What happens to the n-th request (from 0) that ends with this message.
Plan = Callable[[str, int], str]


def reply(messages: Sequence[dict[str, str]]) -> str:
    """The one answer to a conversation: it depends on every message."""
    return "reply " + hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:12]


class CharacterTokens:
    """A tokenizer whose ids are code points."""

    def prompt_ids(self, history: Sequence[Any]) -> list[int]:
        return [ord(c) for m in history for c in m["content"]]

    def answer_ids(self, answer: Any) -> list[int]:
        return [ord(c) for c in answer.text]

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids if i != 2)


class Scripted:
    """The server, in a thread of its own. `asked` counts requests by their last message; `bodies` has all."""

    def __init__(self, plan: Plan, delay: float = 0.0, gives_ids: bool = True, refuses: Sequence[str] = ()) -> None:
        self.plan, self.delay, self.gives_ids, self.refuses = plan, delay, gives_ids, refuses
        self.asked: Counter[str] = Counter()
        self.answered = 0
        self.bodies: list[dict[str, Any]] = []
        self.health = 200
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Stops listening and cuts every connection, as a killed server does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = {k.lower(): v for k, v in (x.split(": ", 1) for x in head.splitlines()[1:] if x)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        path = head.split()[1]
        if path == "/health":
            return self._send(writer, self.health, "{}")
        if fields.get("authorization") != f"Bearer {KEY}":
            return self._send(writer, 401, '{"error": "no"}')
        if path == "/v1/models":
            return self._send(writer, 200, '{"data": [{"id": "base"}]}')
        return await self._chat(writer, json.loads(body))

    async def _chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        if body["model"] != "base":
            return self._send(writer, 404, '{"error": "The model does not exist"}')
        if unknown := [name for name in self.refuses if name in body]:
            return self._send(writer, 422, json.dumps({"detail": f"Unexpected fields: {unknown}"}))
        last = body["messages"][-1]["content"]
        action, self.asked[last] = self.plan(last, self.asked[last]), self.asked[last] + 1
        self.bodies.append(body)
        await asyncio.sleep(self.delay)
        return await self._act(writer, action, body["messages"])

    async def _act(self, writer: asyncio.StreamWriter, action: str, messages: list[dict[str, str]]) -> bool:
        good = json.dumps(self._completion("" if action == "empty" else reply(messages), action))
        if action.isdigit():
            return self._send(writer, int(action), '{"error": "scripted"}')
        if action == "hang":
            await asyncio.sleep(60)
        if action == "slow":
            await asyncio.sleep(0.05)
        if action == "reset":
            return False
        if action == "truncated":
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(good)}\r\n\r\n{good[:20]}".encode())
            await writer.drain()
            return False
        if action == "garbage":
            return self._send(writer, 200, good[:-9])
        if action == "html":
            return self._send(writer, 200, "<html>Welcome</html>", "text/html")
        self.answered += 1
        return self._send(writer, 200, good)

    def _completion(self, text: str, action: str) -> dict[str, Any]:
        finish = "length" if action == "length" else "stop"
        choice: dict[str, Any] = {"message": {"content": text}, "finish_reason": finish}
        answer: dict[str, Any] = {"choices": [choice], "usage": {"completion_tokens": len(text)}}
        if self.gives_ids:
            choice["token_ids"] = [ord(c) for c in text] + [2]
            answer["prompt_token_ids"] = [1, 2, 3]
        return answer

    def _send(self, writer: asyncio.StreamWriter, status: int, body: str, kind: str = "application/json") -> bool:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body.encode())}\r\n\r\n"
        writer.write((head + body).encode())
        return True


Start = Callable[..., Scripted]


@pytest.fixture
def scripted() -> Iterator[Start]:
    """Starts scripted servers, and stops them at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(plan: Plan = lambda _last, _n: "ok", **options: Any) -> Scripted:
            server = Scripted(plan, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def endpoint() -> Callable[..., Endpoint]:
    """An endpoint of a scripted server, with the right key unless another is given."""

    def make(server: Scripted, key: str | None = KEY, **able: Any) -> Endpoint:
        secret = SecretStr(key) if key else None
        return Endpoint(server.url, "base", "vllm", secret, Capabilities(**able))

    return make


def known(endpoint: Endpoint) -> Server:
    """A server that is connected at the start without asking it anything, and later with a real request."""
    fields = dict(endpoint.capabilities.fields)
    return Server(endpoint.url, lambda: probe(endpoint, fields, GREEDY), endpoint)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(GREEDY, 100_000, BASE, CharacterTokens())


@pytest.fixture
def hasty() -> Patience:
    """Gives up in about a second."""
    return Patience(
        attempts=7, first_wait=0.002, longest_wait=0.01, connect=1.0, read=0.25, total=0.5, watch=0.1, outage=0.5
    )


@pytest.fixture
def prompts() -> Callable[[int], list[dict[str, Any]]]:
    """Prompts of one to three user turns, some with a system turn; every message is unlike all others."""

    def make(count: int) -> list[dict[str, Any]]:
        return [_prompt(i) for i in range(count)]

    return make


def _prompt(number: int) -> dict[str, Any]:
    system = [{"role": "system", "content": f"system {number}"}] if number % 3 == 0 else []
    turns = [
        {"role": role, "content": f"{role} {number}.{turn}"}
        for turn in range(1 + number % 3)
        for role in ("user", "assistant")
    ]
    row_id = hashlib.sha256(str(number).encode()).hexdigest()
    return {"id": row_id, "category": f"c{number % 2}", "messages": [*system, *turns]}


@pytest.fixture
def journal_folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"
