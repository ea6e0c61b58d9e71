"""How far something long is: a bar at a terminal, a plain line now and then elsewhere."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

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


class Shown:
    """A state that changes: a bar at a terminal until the block ends, a plain line now and then elsewhere."""

    def __init__(self, say: Say, total: int, done: int = 0) -> None:
        self._say = say
        self._told = self.now()
        self._bar = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            # Drawn by whoever works: a thread of its own would take its turns in the middle of what is timed.
            self._bar = Bar(BarColumn(), TextColumn("{task.description}"), transient=True, auto_refresh=False)
            self._task = self._bar.add_task("starting", completed=done, total=max(1, total))

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def redrawn(self) -> float:
        """Seconds after which a new state is worth showing."""
        return REDRAWN if self._bar else EVERY

    def show(self, done: int, line: str) -> None:
        """line: the whole state. done: of the total, for the bar."""
        if self.now() - self._told < self.redrawn:
            return
        self._told = self.now()
        if self._bar:
            self._bar.update(self._task, completed=done, description=line, refresh=True)
        else:
            self._say(line)

    def now(self) -> float:
        return time.monotonic()


class Steps(Shown):
    """Of work whose steps take about the same time each; says how much is left. done: before this began."""

    def __init__(self, say: Say, total: int, done: int = 0) -> None:
        super().__init__(say, total, done)
        self._total, self._first, self._began = total, done, self.now()

    def __enter__(self) -> Self:
        self._began = self.now()
        return super().__enter__()

    def show(self, done: int, line: str) -> None:
        """line: without the time."""
        took = (self.now() - self._began) / max(1, done - self._first)
        super().show(done, f"{line}, {took * (self._total - done):.0f} s left")


class Progress(Shown):
    """Shows how far async work is, in `with`, as long as `keep_showing` runs beside it.

    line: the whole state as one line. count: (done, total), for the bar.
    """

    def __init__(self, say: Say, line: Callable[[], str], count: Callable[[], tuple[int, int]]) -> None:
        super().__init__(say, count()[1])
        self._line, self._count = line, count

    async def keep_showing(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self.redrawn)
            self.show(self._count()[0], self._line())
