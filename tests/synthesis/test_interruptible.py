"""SIGTERM while the event loop works: the handler's exception comes out, wherever the loop was."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from specdec.synthesis.interruptible import run_interruptible


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
