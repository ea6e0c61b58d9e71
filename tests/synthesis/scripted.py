"""A scripted HTTP server: deterministic answers, and whatever misfortune a plan asks for.

Its tokens are bytes. The ids of a prompt hold the whole conversation, so that an answer can be continued from ids.
"""

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

KEY = "sk-scripted-3f2a"
ROUNDS = 5  # of the event loop, within which asyncio makes and closes connections
END, PROMPT_END = 256, 257  # ids that are no bytes: of an answer, and between prompt and answer

Messages = Sequence[dict[str, str]]
# What happens to the n-th request (from 0) that ends with this message.
Plan = Callable[[str, int], str]


def reply(messages: Messages, seed: int | None = None) -> str:
    """The one answer to a conversation: it depends on every message, and on the seed."""
    asked = json.dumps(messages) + ("" if seed is None else f" {seed}")
    return "reply " + hashlib.sha256(asked.encode()).hexdigest()[:12]


class CharacterTokens:
    """A tokenizer whose ids are code points."""

    def prompt_ids(self, history: Sequence[Any]) -> list[int]:
        return [ord(c) for m in history for c in m["content"]]

    def answer_ids(self, answer: Any) -> list[int]:
        return [ord(c) for c in answer.text]

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids)


class ByteTokens(CharacterTokens):
    """The scripted server's own tokenizer."""

    def prompt_ids(self, history: Sequence[Any]) -> list[int]:
        return [*json.dumps(list(history)).encode(), PROMPT_END]

    def text(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i < END).decode(errors="replace")


TOKENS = ByteTokens()


class Scripted:
    """The server, in a thread of its own. `asked` counts requests by their last message; `bodies` has all.

    delay: seconds before each answer. beat: seconds between two moments at which all that are ready leave together.
    gives_ids, takes_ids: whether it gives token ids, and takes them as a prompt.
    says: what it answers instead of `reply`. context: tokens of prompt and answer; more is refused as vLLM does.
    room: requests at once; another one gets 429. refuses: fields with which a request is refused, in the words of
    `refusal`, which may repeat the whole `{body}`.
    """

    def __init__(
        self,
        plan: Plan,
        delay: float = 0.0,
        beat: float = 0.0,
        gives_ids: bool = True,
        takes_ids: bool = True,
        refuses: Sequence[str] = (),
        says: Callable[..., str] = reply,
        context: int = 10**9,
        room: int = 10**9,
        refusal: str = "Unexpected fields in the request",
    ) -> None:
        self.plan, self.delay, self.beat, self.gives_ids, self.takes_ids = plan, delay, beat, gives_ids, takes_ids
        self.refuses, self.says, self.context, self.room = refuses, says, context, room
        self.refusal = refusal
        self.asked: Counter[str] = Counter()
        self.answered = self.port = 0
        self.bodies: list[dict[str, Any]] = []
        self.health, self.health_looks = 200, 0
        self._away: float | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Stops listening and cuts every connection, as a killed server does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(10)

    def _end(self) -> None:
        self._over.set()
        self._stopped.set()
        self._back.set()

    def die(self, away: float | None = None) -> None:
        """Does the same, and may listen again after some seconds. For plans, which run in the server's thread."""
        self._away = away
        self._back.clear()
        self._stopped.set()

    def come_back(self) -> None:
        """Listens again."""
        self._loop.call_soon_threadsafe(self._back.set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over, self._stopped, self._back = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        while not self._over.is_set():
            server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=1024)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stopped.wait()
            await self._end_all(server)
            self._stopped.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), self._away)

    async def _end_all(self, server: asyncio.Server) -> None:
        """Stops listening and cuts every connection.

        What was accepted in the last moment becomes a connection some rounds of the loop later, and asyncio breaks
        (leaving its socket open) where the server is closed by then.
        """
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await self._cut()
        server.close()
        await self._cut()

    async def _cut(self) -> None:
        """At once; a connection is closed, and one just accepted made, some rounds later."""
        for task, writer in self._talks.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._talks, return_exceptions=True)
        for _ in range(ROUNDS):
            await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Known at once, and not when its task begins: one that is cut before that is closed too."""
        task = self._loop.create_task(self._talk(reader, writer))
        self._talks[task] = writer
        task.add_done_callback(lambda ended: self._talks.pop(ended, None))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = {k.lower(): v for k, v in (x.split(": ", 1) for x in head.splitlines()[1:] if x)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        path = head.split()[1]
        if path == "/health":
            self.health_looks += 1
            return self._send(writer, self.health, "{}")
        if fields.get("authorization") != f"Bearer {KEY}":
            return self._send(writer, 401, '{"error": "no"}')
        if path == "/v1/models":
            return self._send(writer, 200, '{"data": [{"id": "base"}]}')
        if head.startswith("GET") or (path == "/v1/completions" and not self.takes_ids):
            return self._send(writer, 404, '{"detail": "Not Found"}')
        return await self._answer(writer, json.loads(body))

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        if body["model"] != "base":
            return self._send(writer, 404, '{"error": "The model does not exist"}')
        if any(name in body for name in self.refuses):
            return self._send(writer, 422, json.dumps({"detail": self.refusal.format(body=body)}))
        messages, so_far = _asked(body)
        last = messages[-1]["content"]
        action, self.asked[last] = self.plan(last, self.asked[last]), self.asked[last] + 1
        self.bodies.append(body)
        if self.room <= 0:
            return self._send(writer, 429, '{"error": "too many requests"}')
        self.room -= 1
        try:
            return await self._in_turn(writer, body, messages, so_far, action)
        finally:
            self.room += 1

    async def _in_turn(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], messages: Messages, so_far: list[int], action: str
    ) -> bool:
        await asyncio.sleep(self.delay)
        if self.beat:
            await asyncio.sleep(self.beat - time.monotonic() % self.beat)
        if len(TOKENS.prompt_ids(messages)) + len(so_far) + body["max_tokens"] > self.context:
            return self._send(writer, 400, f'{{"message": "maximum context length is {self.context} tokens"}}')
        return await self._act(writer, action, self._completion(body, messages, so_far, action))

    async def _act(self, writer: asyncio.StreamWriter, action: str, good: str) -> bool:
        if action.isdigit():
            return self._send(writer, int(action), '{"error": "scripted"}')
        if action == "hang":
            await asyncio.sleep(60)
        if action == "slow":
            await asyncio.sleep(0.05)
        if action == "reset":
            return False
        if action == "echo":
            return self._send(writer, 400, json.dumps({"error": f"bad request with authorization Bearer {KEY}"}))
        if action == "drip":
            return await self._drip(writer, good)
        if action == "truncated":
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(good)}\r\n\r\n{good[:20]}".encode())
            await writer.drain()
            return False
        if action == "garbage":
            return self._send(writer, 200, good[:-9])
        if action == "surrogate":
            return self._send(writer, 200, good.replace("reply", "\\ud83d"))
        if action == "html":
            return self._send(writer, 200, "<html>Welcome</html>", "text/html")
        self.answered += 1
        return self._send(writer, 200, good)

    async def _drip(self, writer: asyncio.StreamWriter, good: str) -> bool:
        """A good answer in twenty pieces, 50 ms between two: never silent for long, and long all the same."""
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(good)}\r\n\r\n".encode()
        )
        step = -(-len(good) // 20)
        for place in range(0, len(good), step):
            writer.write(good[place : place + step].encode())
            await asyncio.sleep(0.05)
        return True

    def _completion(self, body: dict[str, Any], messages: Messages, so_far: list[int], action: str) -> str:
        """The JSON of the next `max_tokens` tokens of the answer; `empty` and `length` end it as they say."""
        text = "" if action == "empty" else self.says(messages, *([body["seed"]] if "seed" in body else []))
        left = [*text.encode(), END][len(so_far) :]
        ids = left[: body["max_tokens"]]
        finish = "stop" if len(ids) == len(left) and action != "length" else "length"
        text = TOKENS.text(ids)
        finish = action if action in ("abort", "repetition") else finish
        ids = [] if action == "no ids" else ids
        choice: dict[str, Any] = {"finish_reason": finish, "token_ids": ids if self.gives_ids else None}
        choice |= {"text": text} if "prompt" in body else {"message": {"content": text}}
        answer: dict[str, Any] = {"choices": [choice], "usage": {"completion_tokens": len(ids)}}
        if self.gives_ids:
            place = choice if "prompt" in body else answer
            place["prompt_token_ids"] = body["prompt"] if "prompt" in body else TOKENS.prompt_ids(messages)
        return json.dumps(answer)

    def _send(self, writer: asyncio.StreamWriter, status: int, body: str, kind: str = "application/json") -> bool:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body.encode())}\r\n\r\n"
        writer.write((head + body).encode())
        return True


def _asked(body: dict[str, Any]) -> tuple[Messages, list[int]]:
    """The conversation of a request, and the ids of the answer so far."""
    if "messages" in body:
        return body["messages"], []
    at = body["prompt"].index(PROMPT_END)
    return json.loads(bytes(body["prompt"][:at])), body["prompt"][at + 1 :]
