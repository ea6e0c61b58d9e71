"""Answers all prompts that the journal does not hold yet, and writes the rows in the prompts' order.

A fixed number of workers draw from one iterator of prompts, so that neither tasks nor rows pile up in memory.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from specdec.config import Synthesize
from specdec.errors import DataError
from specdec.io import write_jsonl
from specdec.synthesis.answer import RowFailed
from specdec.synthesis.client import Client, Patience
from specdec.synthesis.conversation import Recipe, regenerate
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.interruptible import run_interruptible
from specdec.synthesis.journal import Journal
from specdec.synthesis.statistics import DataStatistics, RunStatistics

PROGRESS_SECONDS = 5.0

Prompt = Mapping[str, Any]


def journal_settings(settings: Synthesize, base: Mapping[str, str]) -> dict[str, Any]:
    """What decides the answers, and so which journal they belong to."""
    return {**settings.model_dump(exclude={"max_failed_share"}), "base": dict(base)}


def count_missing(prompts: Iterable[Prompt], journal: Journal) -> tuple[int, int]:
    """How many prompts there are, and how many of them have no answer yet."""
    total = missing = 0
    for prompt in prompts:
        total += 1
        missing += prompt["id"] not in journal
    return total, missing


def synthesize(
    prompts: Callable[[], Iterable[Prompt]],
    journal: Journal,
    endpoint: Endpoint,
    recipe: Recipe,
    *,
    max_failed_share: float,
    concurrency: int,
    say: Callable[[str], None],
    patience: Patience | None = None,
) -> RunStatistics:
    """Answers what is missing. `prompts()` gives all rows, and is called twice: to count, and to ask.

    Raises DataError above `max_failed_share` (of all prompts), ServerError where the server is gone,
    RequestRefused where it will have none of us. In every case what was answered is in the journal.
    """
    total, missing = count_missing(prompts(), journal)
    run = _Run(journal, recipe, RunStatistics(total, total - missing), max_failed_share * total)
    client = Client(endpoint, concurrency, patience)
    run_interruptible(run.all(prompts(), client, concurrency, say))
    run.statistics.ended, run.statistics.retries = time.monotonic(), client.retries
    for line in run.statistics.last_lines():
        say(line)
    return run.statistics


def assemble(journal: Journal, prompts: Iterable[Prompt], out: Path) -> DataStatistics:
    """Writes the answered rows in the prompts' order: the same answers give the same bytes."""
    statistics = DataStatistics()
    write_jsonl(out, _rows(journal, prompts, statistics))
    return statistics


def _rows(journal: Journal, prompts: Iterable[Prompt], statistics: DataStatistics) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        if prompt["id"] not in journal:
            statistics.missing += 1
            continue
        row = {**journal.row(prompt["id"]), "id": prompt["id"], "category": prompt["category"]}
        statistics.add(row)
        yield row


class _Run:
    """The state that the workers of one run share."""

    def __init__(self, journal: Journal, recipe: Recipe, statistics: RunStatistics, budget: float) -> None:
        self.journal, self.recipe, self.statistics, self.budget = journal, recipe, statistics, budget

    async def all(self, prompts: Iterable[Prompt], client: Client, workers: int, say: Callable[[str], None]) -> None:
        """Runs the workers to the end, or to the first error that concerns everyone."""
        waiting = self._missing(prompts)
        async with client, _reporting(self.statistics, say):
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(workers):
                        group.create_task(self._work(waiting, client))
            except BaseExceptionGroup as errors:  # as one error, which callers know how to show
                raise _first(errors) from None

    def _missing(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """Prompts without an answer, each once (two of the same id are one row)."""
        drawn: set[str] = set()
        for prompt in prompts:
            if prompt["id"] not in self.journal and prompt["id"] not in drawn:
                drawn.add(prompt["id"])
                yield prompt

    async def _work(self, waiting: Iterator[Prompt], client: Client) -> None:
        for prompt in waiting:
            try:
                made = await regenerate(prompt, client, self.recipe)
            except RowFailed as failure:
                self._record_failure(prompt["id"], failure)
                continue
            self.journal.answered(made.row(prompt, self.recipe))
            self.statistics.add(made)

    def _record_failure(self, row_id: str, failure: RowFailed) -> None:
        self.journal.failed(row_id, failure.kind, str(failure))
        self.statistics.add_failure(failure.kind, str(failure))
        failed = self.statistics.failures.total()
        if failed > self.budget:
            raise DataError(
                f"{failed} of {self.statistics.total} rows failed, more than synthesize.max_failed_share "
                f"allows: {self.statistics.failure_summary()}"
            )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@contextlib.asynccontextmanager
async def _reporting(statistics: RunStatistics, say: Callable[[str], None]) -> Any:
    """A progress line every few seconds while the block runs."""

    async def report() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            say(statistics.line())

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
