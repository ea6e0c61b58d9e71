"""How far something long is: a bar at a terminal, a plain line now and then elsewhere."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

EVERY = 5.0  # seconds between two plain lines
REDRAWN = 0.25  # seconds between two states of a bar

Say = Callable[[str], None]


@contextlib.contextmanager
def while_waiting(say: Say, what: str, every: float = EVERY) -> Iterator[None]:
    """Says `what` with the seconds passed, every `every` seconds, until the block ends."""
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            say(f"{what} ({time.monotonic() - began:.0f} s)")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Progress:
    """Shows how far async work is, in `with`, as long as `keep_showing` runs beside it.

    line: the whole state as one line. count: (done, total), for the bar.
    """

    def __init__(self, say: Say, line: Callable[[], str], count: Callable[[], tuple[int, int]]) -> None:
        self._say, self._line, self._count = say, line, count
        self._bar = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(BarColumn(), TextColumn("{task.description}"), transient=True)
            self._task = self._bar.add_task("", total=max(1, count()[1]))

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    async def keep_showing(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(REDRAWN if self._bar else EVERY)
            if self._bar:
                self._bar.update(self._task, completed=self._count()[0], description=self._line())
            else:
                self._say(self._line())
