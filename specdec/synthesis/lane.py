"""One server in a run: its slots, its tries, and whether it is set aside.

A server is set aside when its `/health` says so, or when request after request fails while `/health` is fine. Its
rows go back to the backlog, for the others or for later, and it is connected again by one real request.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from specdec.errors import RequestRefused, SpecdecError
from specdec.synthesis.answer import Answer, RowFailed
from specdec.synthesis.client import Client, MayPass, Patience
from specdec.synthesis.endpoint import Endpoint, Server
from specdec.synthesis.interruptible import in_thread
from specdec.synthesis.limit import MOST, START, Limit
from specdec.synthesis.request import CHAT, COMPLETIONS, Draw, Message, chat_body, completion_body
from specdec.synthesis.statistics import LaneStatistics

UNHEALTHY_LOOKS = 3  # in a row, until a server that fails no request is set aside
ROUNDS_OF_FAILURE = 3  # rows' worth of tries in a row, until a server with a good /health is set aside
HEALTH_HOLDS = 1.0  # seconds that one good look at /health is believed


class SetAside(Exception):
    """The server takes no requests now. `mine`: this request found out, or was the only one in flight."""

    def __init__(self, mine: bool) -> None:
        super().__init__()
        self.mine = mine


class Lane:
    """A server, its client and its limit. concurrency: a fixed number of requests in flight; None finds it.
    check: raises where a connected server is not to be used.

    gone: why it is not to be connected again. reason: why it is set aside. connects: since its last answer.
    starved: a slot is free, and no row is there for it.
    """

    def __init__(
        self, server: Server, patience: Patience, concurrency: int | None, check: Callable[[Endpoint], None]
    ) -> None:
        self.server, self.patience, self._concurrency, self._check = server, patience, concurrency, check
        self.statistics = LaneStatistics(server.url)
        self.gone: SpecdecError | None = None
        self.reason = "it did not answer at the start"
        self.limit, self.in_flight, self.starved = Limit(1, 1), 0, False
        self._client: Client | None = None
        self._asking: set[asyncio.Timeout] = set()  # one a request in flight, to call it back with
        self._well, self._down, self._freed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._down.set()
        self._looking, self._healthy_at = asyncio.Lock(), 0.0
        self._failed_in_a_row, self._lost_in_a_row, self._lost_alone, self.connects = 0, 0, False, 0
        if server.endpoint:
            check(server.endpoint)
            self._use(server.endpoint)

    @property
    def well(self) -> bool:
        """Whether it takes requests."""
        return self._well.is_set()

    @property
    def endpoint(self) -> Endpoint:
        """The server as it was last connected."""
        return self._connected.endpoint

    @property
    def _connected(self) -> Client:
        assert self._client is not None, "a lane takes requests only when it is well"
        return self._client

    async def close(self) -> None:
        """Closes the connections."""
        if self._client:
            await self._client.close()

    async def acquire(self) -> None:
        """Waits for a slot: the server is well, and fewer requests are in flight than its limit. One waiter."""
        while True:
            await self._well.wait()
            self._freed.clear()
            if self.in_flight < self.limit.value:
                self.in_flight += 1
                return
            await self._freed.wait()

    def release(self) -> None:
        """Gives a slot back."""
        self.in_flight -= 1
        self._freed.set()

    async def chat(self, messages: Sequence[Message], draw: Draw, seed: int | None) -> Answer:
        """The base's next turn. Raises RowFailed or SetAside."""
        return await self._ask(CHAT, chat_body(self.endpoint, messages, draw, seed))

    async def resume(self, token_ids: Sequence[int], draw: Draw, max_tokens: int, seed: int | None) -> Answer:
        """What follows behind `token_ids`. Raises RowFailed or SetAside."""
        return await self._ask(COMPLETIONS, completion_body(self.endpoint, token_ids, draw, max_tokens, seed))

    async def watch(self) -> None:
        """Looks at the server's health now and then; returns when it is set aside, by this or by a request."""
        unhealthy = 0
        while not self._down.is_set():
            try:
                async with asyncio.timeout(self.patience.watch):
                    await self._down.wait()
            except TimeoutError:
                unhealthy = 0 if await self._connected.healthy() else unhealthy + 1
                if unhealthy == UNHEALTHY_LOOKS:
                    self._set_aside("its /health fails")

    async def reconnect(self) -> None:
        """Connects again. Raises ServerError where that may be tried again, else what makes it `gone`."""
        self.connects += 1
        endpoint = await in_thread(self.server.connect)
        self._check(endpoint)
        await self.close()
        self._use(endpoint)

    def _use(self, endpoint: Endpoint) -> None:
        most = self._concurrency or endpoint.most_in_flight or MOST
        # A server that one row kills again and again gets fewer at a time, until that row is alone with it.
        halved, fixed = max(0, self._lost_in_a_row - 1), self._concurrency is not None
        self.limit = Limit(self._concurrency or START, most, halved, fixed)
        self._client = Client(endpoint, self.patience)
        self.statistics.refused = endpoint.capabilities.refused
        self._failed_in_a_row = 0
        self._down.clear()
        self._well.set()

    async def _ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Asks until there is an answer, or no hope of one; is called back when the server is set aside."""
        recall = asyncio.timeout(None)
        self._asking.add(recall)
        try:
            async with recall:
                return await self._tries(path, body)
        except TimeoutError:
            raise SetAside(mine=self._lost_alone) from None
        finally:
            self._asking.discard(recall)

    async def _tries(self, path: str, body: dict[str, Any]) -> Answer:
        began, tries, failures = time.monotonic(), 0, 0
        while self.well:
            try:
                answer = await self._connected.post(path, body)
            except MayPass as failure:
                await self._failed(failure, began)
                tries, failures = tries + 1, failures + (not failure.wants_less)
                if failures >= self.patience.attempts:
                    raise RowFailed(failure.kind, str(failure)) from None
                self.statistics.retries += 1
                await asyncio.sleep(self.patience.wait(tries, failure.asked))
            except RequestRefused as error:
                self.gone = error
                self._set_aside(str(error))
            else:
                self._answered(answer)
                return answer
        raise SetAside(mine=False)

    def _answered(self, answer: Answer) -> None:
        self._failed_in_a_row = self._lost_in_a_row = self.connects = 0
        tokens = answer.completion_tokens if answer.token_ids is None else len(answer.token_ids)
        self.limit.answered(len(answer.text) if tokens is None else tokens, not self.starved)
        self.statistics.add(answer, tokens or 0)
        self._freed.set()  # the limit may have risen

    async def _failed(self, failure: MayPass, began: float) -> None:
        """Tells one unlucky row from a server that is gone. Raises SetAside in the second case."""
        if failure.overload:
            self.limit.overloaded()
        reason = self._only_less(failure, began) if failure.wants_less else await self._given_up(failure)
        if reason:
            self._set_aside(reason)
            raise SetAside(mine=True)

    def _only_less(self, failure: MayPass, began: float) -> str | None:
        """A server that wants fewer requests is not ill, and no row fails of it, as long as it answers some."""
        silent = time.monotonic() - max(began, self.statistics.last_answer)
        return None if silent < self.patience.read else f"nothing but {failure} for {silent:.0f} s"

    async def _given_up(self, failure: MayPass) -> str | None:
        self._failed_in_a_row += 1
        if failure.not_here or not await self._is_healthy():
            return str(failure)
        if self._failed_in_a_row < ROUNDS_OF_FAILURE * self.patience.attempts:
            return None
        return f"{self._failed_in_a_row} requests in a row failed, the last with {failure}"

    async def _is_healthy(self) -> bool:
        async with self._looking:  # one look for all that failed together
            if time.monotonic() - self._healthy_at < HEALTH_HOLDS:
                return True
            healthy = await self._connected.healthy()
            if healthy:
                self._healthy_at = time.monotonic()
            return healthy

    def _set_aside(self, reason: str) -> None:
        """No more requests; those in flight may hang on a dead connection, and are called back."""
        if not self.well:
            return
        self.reason, self._healthy_at = reason, 0.0
        self.statistics.set_aside += 1
        self._lost_in_a_row, self._lost_alone = self._lost_in_a_row + 1, len(self._asking) == 1
        self._well.clear()
        self._down.set()
        while self._asking:
            self._asking.pop().reschedule(asyncio.get_running_loop().time())
