"""`asyncio.run` that ends as cleanly on SIGTERM as it does on Ctrl-C."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`. On SIGTERM it is cancelled, and then the handler that was there before is called.

    A handler that raises (as a stage's does) must not run inside the event loop: raised in a callback, the
    exception would only be logged.
    """
    previous = signal.getsignal(signal.SIGTERM)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    caught = threading.Event()
    try:
        return asyncio.run(_cancelled_by_sigterm(work, caught))
    except asyncio.CancelledError:
        if not caught.is_set():
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    previous(signal.SIGTERM, None)
    raise AssertionError("the SIGTERM handler returned, and the work was cancelled")


async def _cancelled_by_sigterm(work: Coroutine[Any, Any, T], caught: threading.Event) -> T:
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        caught.set()
        task.cancel()

    with _handler(stop):
        return await work


@contextlib.contextmanager
def _handler(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
