"""`asyncio.run` that ends as cleanly on SIGTERM as it does on Ctrl-C, and at once."""

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


async def in_thread(work: Callable[[], T]) -> T:
    """Runs blocking work beside the loop. Unlike `asyncio.to_thread`, nobody waits for it when we are cancelled."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if future.done() else settled())

    def call() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            settle(lambda error=error: future.set_exception(error))  # type: ignore[misc]
        else:
            settle(lambda: future.set_result(result))

    threading.Thread(target=call, daemon=True).start()
    return await future
