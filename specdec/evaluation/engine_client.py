"""Timed requests to a vLLM server: prompts as token ids, greedy answers as token ids, streamed."""

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from specdec.errors import ServerError
from specdec.serving.counters import Counters, read_counters
from specdec.serving.vllm import RunningVllm

REQUEST_SECONDS = 1800.0  # the longest silence of one answer
SETTLE_SECONDS, POLL_SECONDS = 10.0, 0.02  # until a server has counted what it has sent


@dataclass(frozen=True)
class Answer:
    """seconds: until the last token; first_seconds: until the first one."""

    token_ids: list[int]
    seconds: float
    first_seconds: float


@dataclass(frozen=True)
class Batch:
    """Requests of which a fixed number was in flight. seconds: of the whole. counted: what the server counted."""

    answers: list[Answer]
    seconds: float
    counted: Counters


class EngineClient:
    """One server, which nobody else asks while we measure: its counters are those of all requests."""

    def __init__(self, server: RunningVllm, max_new_tokens: int):
        self._server, self._max_new_tokens = server, max_new_tokens
        self._http = httpx.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=httpx.Timeout(REQUEST_SECONDS, connect=10.0),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._counted = read_counters(server.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def run(self, prompts: list[list[int]], concurrency: int) -> Batch:
        """Greedy answers to prompts of token ids, in their order. Raises ServerError."""
        turns = asyncio.Semaphore(concurrency)

        async def one(prompt: list[int]) -> Answer:
            async with turns:
                return await self._ask(prompt)

        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt)) for prompt in prompts]
        except* ServerError as errors:
            raise errors.exceptions[0] from None
        seconds = time.perf_counter() - began
        answers = [task.result() for task in tasks]
        return Batch(answers, seconds, self._count(sum(len(answer.token_ids) for answer in answers)))

    def _count(self, tokens: int) -> Counters:
        """What was counted since the last look; a server counts an answer's last tokens after it has sent them."""
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            now = read_counters(self._server.url)
            try:
                counted = now - self._counted
            except ValueError:
                raise ServerError(f"{self._server.url} has started anew while it was measured") from None
            if counted.generated >= tokens or time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)
        if counted.generated != tokens:
            raise ServerError(
                f"{self._server.url} has counted {counted.generated} tokens where {tokens} came back: someone else "
                "is asking it, or its counters are not those of vLLM"
            )
        self._counted = now
        return counted

    async def _ask(self, prompt: list[int]) -> Answer:
        request = {
            "model": self._server.model,
            "prompt": prompt,
            "max_tokens": self._max_new_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
            "stream": True,
            "return_token_ids": True,
        }
        ids: list[int] = []
        first = 0.0
        began = time.perf_counter()
        try:
            async with self._http.stream("POST", "/v1/completions", json=request) as response:
                if response.status_code != 200:
                    told = (await response.aread()).decode(errors="replace")[:300]
                    raise ServerError(f"{self._server.url} refuses a prompt (HTTP {response.status_code}): {told}")
                async for line in response.aiter_lines():
                    found = _token_ids(line, self._server.url)
                    if found and not ids:
                        first = time.perf_counter() - began
                    ids += found
        except httpx.HTTPError as error:
            raise ServerError(f"{self._server.url} broke off: {str(error) or type(error).__name__}") from None
        if not ids:
            raise ServerError(
                f"{self._server.url} gave no token ids: this vLLM is too old (it needs return_token_ids)"
            )
        return Answer(ids, time.perf_counter() - began, first)


def _token_ids(line: str, url: str) -> list[int]:
    """Of one line of a stream of server-sent events."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return []
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise ServerError(f"{url} broke off: {str(event['error'])[:300]}")
    return [i for choice in event.get("choices", []) for i in choice.get("token_ids") or []]
