"""SIGTERM while the event loop works: the handler's exception comes out, wherever the loop was."""

import asyncio
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from specdec.errors import ServerError
from specdec.synthesis import Endpoint, Patience, Server
from specdec.synthesis.interruptible import in_thread, run_interruptible


class Stopped(BaseException):
    pass


@pytest.fixture(autouse=True)
def raising_handler() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_inside_a_callback_is_not_lost() -> None:
    cleaned = []

    async def work() -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(2)
        finally:
            cleaned.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        run_interruptible(work())
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is handler


def test_without_a_signal_the_result_comes_back() -> None:
    async def work() -> int:
        return 3

    assert run_interruptible(work()) == 3


def interrupt_soon(number: int, seconds: float = 0.3) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("while_", ["answers come", "a server hangs", "a connect hangs", "all wait to try again"])
def test_a_run_ends_at_once(
    number: int, error: type[BaseException], while_: str, scripted: Any, endpoint: Any, go: Any, prompts: Any
) -> None:
    let_go = threading.Event()

    def connect() -> Endpoint:
        if while_ == "a connect hangs":
            let_go.wait(20)
        raise ServerError("no")

    patient = Patience(first_wait=10.0, longest_wait=20.0, read=60.0, total=60.0)
    if while_ == "a connect hangs":
        patient = dataclasses.replace(patient, first_wait=0.01)
    server = scripted(lambda _last, _n: "hang" if while_ == "a server hangs" else "ok", delay=0.05)
    known = None if while_ in ("a connect hangs", "all wait to try again") else endpoint(server)
    interrupt_soon(number)
    began = time.monotonic()
    with pytest.raises(error):
        go(Server(server.url, connect, known), prompts(300), patience=patient, concurrency=2)
    assert time.monotonic() - began < 2
    let_go.set()


def test_nobody_waits_for_a_thread_that_hangs() -> None:
    let_go = threading.Event()

    async def work() -> None:
        async with asyncio.timeout(0.05):
            await in_thread(lambda: let_go.wait(20))

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert time.monotonic() - began < 2
    let_go.set()


def test_what_a_thread_raises_comes_out() -> None:
    async def work() -> None:
        await in_thread(lambda: {}["missing"])

    with pytest.raises(KeyError, match="missing"):
        asyncio.run(work())
