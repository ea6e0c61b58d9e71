"""The rows of a run that are still to be answered, drawn by several servers, returned by those that failed."""

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Prompt = Mapping[str, Any]


@dataclass
class Job:
    """One sample of one prompt. lost: how often a server was set aside by a request of this row."""

    prompt: Prompt
    sample: int
    lost: int = 0

    @property
    def key(self) -> str:
        """Its name in the journal."""
        return f"{self.prompt['id']}/{self.sample}"


class Backlog:
    """Jobs from an iterator, each handed out once, and again only after `give_back`. For one event loop."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs, self._returned = jobs, deque[Job]()
        self._out, self._drawn = 0, False
        self._changed = asyncio.Event()
        self.done = asyncio.Event()  # every job is finished
        self._look()

    async def take(self) -> Job | None:
        """The next job; waits where others are out that may come back. None when all are done."""
        while True:
            self._changed.clear()
            if job := self._next():
                self._out += 1
                return job
            if self.done.is_set():
                return None
            await self._changed.wait()

    def give_back(self, job: Job) -> None:
        """A job that is to be taken again, by whichever server is free."""
        self._returned.append(job)
        self._out -= 1
        self._changed.set()

    def finish(self) -> None:
        """A job is done, one way or the other."""
        self._out -= 1
        self._look()

    def _look(self) -> None:
        """Sees for itself that nothing is left: no server may be there to take the next job and find none."""
        if self._out:
            return
        if job := self._next():
            self._returned.append(job)
        else:
            self.done.set()
        self._changed.set()

    def _next(self) -> Job | None:
        if self._returned:
            return self._returned.popleft()
        job = None if self._drawn else next(self._jobs, None)
        self._drawn = job is None
        return job
