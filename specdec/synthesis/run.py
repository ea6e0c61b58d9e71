"""Answers all rows that the journal does not hold yet, and writes them in the prompts' order.

Each server draws from one backlog as its slots come free, so the faster one answers more. Neither tasks nor rows
pile up in memory: a row is drawn when a slot is free for it.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.config import Synthesize
from specdec.errors import DataError, RequestRefused, ServerEnded, ServerError, SpecdecError, TransientError
from specdec.io import write_jsonl
from specdec.progress import Progress
from specdec.synthesis.answer import RowDropped, RowFailed
from specdec.synthesis.backlog import Backlog, Job, Prompt
from specdec.synthesis.client import Patience
from specdec.synthesis.conversation import Recipe, Regenerated, regenerate
from specdec.synthesis.endpoint import Endpoint, Server
from specdec.synthesis.interruptible import run_interruptible
from specdec.synthesis.journal import Journal
from specdec.synthesis.lane import Lane, SetAside
from specdec.synthesis.request import QUESTION
from specdec.synthesis.statistics import DataStatistics, RunStatistics

Say = Callable[[str], None]


def journal_settings(settings: Synthesize, engine: str, base: Mapping[str, str]) -> dict[str, Any]:
    """What decides the answers, and so which journal they belong to. engine: what `auto` has come to."""
    return {**settings.model_dump(exclude={"max_failed_share", "engine"}), "engine": engine, "base": dict(base)}


def count_missing(prompts: Iterable[Prompt], samples: int, journal: Journal) -> tuple[int, int]:
    """How many rows there are (prompts times samples), and how many of them are not done yet."""
    total = missing = 0
    for job in _jobs(prompts, samples):
        total += 1
        missing += job.key not in journal
    return total, missing


def synthesize(
    prompts: Callable[[], Iterable[Prompt]],
    journal: Journal,
    servers: Sequence[Server],
    recipe: Recipe,
    *,
    max_failed_share: float,
    concurrency: int | None,
    say: Say,
    patience: Patience | None = None,
) -> RunStatistics:
    """Answers what is missing. `prompts()` gives all prompts, and is called twice: to count, and to ask.

    concurrency: requests in flight to each server; None finds the best number. Raises DataError above
    `max_failed_share` (of all rows), ServerError where no server answers any more, RequestRefused where none will
    have us. In every case what was answered is in the journal.
    """
    total, missing = count_missing(prompts(), recipe.sampling.samples, journal)
    statistics = RunStatistics(total, total - missing)
    run = _Run(journal, recipe, statistics, max_failed_share * total, say, patience or Patience())
    try:
        run_interruptible(run.all(prompts(), servers, concurrency))
    finally:
        if statistics.here:
            journal.ran(statistics.figures())
    for line in statistics.last_lines():
        say(line)
    return statistics


def assemble(journal: Journal, prompts: Iterable[Prompt], samples: int, out: Path) -> DataStatistics:
    """Writes the answered rows in the prompts' order: the same answers give the same bytes."""
    statistics = DataStatistics()
    write_jsonl(out, _rows(journal, prompts, samples, statistics))
    return statistics


def _rows(
    journal: Journal, prompts: Iterable[Prompt], samples: int, statistics: DataStatistics
) -> Iterator[dict[str, Any]]:
    for job in _jobs(prompts, samples):
        if row := journal.row(job.key):
            row["category"] = job.prompt["category"]
            statistics.add(row)
            yield row
        elif job.key in journal:
            statistics.dropped[str(journal.why(job.key))] += 1
        else:
            statistics.add_missing(journal.why(job.key))


def _jobs(prompts: Iterable[Prompt], samples: int) -> Iterator[Job]:
    return (Job(prompt, sample) for prompt in prompts for sample in range(samples))


class _Run:
    """The state that the servers of one run share. budget: rows that may fail."""

    def __init__(
        self, journal: Journal, recipe: Recipe, statistics: RunStatistics, budget: float, say: Say, patience: Patience
    ) -> None:
        self.journal, self.recipe, self.statistics, self.budget = journal, recipe, statistics, budget
        self.say, self.patience = say, patience
        self.lanes: list[Lane] = []

    async def all(self, prompts: Iterable[Prompt], servers: Sequence[Server], concurrency: int | None) -> None:
        """Answers every job, or stops at the first error that concerns everyone."""
        jobs = _jobs(prompts, self.recipe.sampling.samples)
        backlog = Backlog(job for job in jobs if self.journal.claim(job.key))
        self.lanes = [Lane(server, self.patience, concurrency, self._check_template) for server in servers]
        progress = Progress(self.say, self.statistics.line, lambda: (self.statistics.done, self.statistics.total))
        try:
            with progress:
                await self._until_done(backlog, progress)
        except BaseExceptionGroup as errors:  # as one error, which callers know how to show
            raise _first(errors) from None
        finally:
            self.statistics.end((lane.statistics, lane.limit.value) for lane in self.lanes)
            for lane in self.lanes:
                await lane.close()

    def _check_template(self, endpoint: Endpoint) -> None:
        """Raises RequestRefused where a server renders a prompt to other tokens than the base's own tokenizer and
        template do: it serves another base, and a week of its answers would teach a drafter the wrong thing."""
        told, tokens = endpoint.capabilities.question_ids, self.recipe.tokens
        if told is not None and tokens and list(told) != tokens.prompt_ids(QUESTION):
            raise RequestRefused(
                f"the server at {endpoint.url} renders prompts to other tokens than the base's own tokenizer and "
                "chat template: let it serve this very base, with its own template"
            )

    async def _until_done(self, backlog: Backlog, progress: Progress) -> None:
        async with asyncio.TaskGroup() as group:
            tasks: list[Coroutine[Any, Any, None]] = [progress.keep_showing(), self._bound_outage()]
            for lane in self.lanes:
                tasks += [self._feed(lane, backlog, group), self._keep_well(lane)]
            running = [group.create_task(task) for task in tasks]
            await backlog.done.wait()
            for task in running:
                task.cancel()

    async def _feed(self, lane: Lane, backlog: Backlog, group: asyncio.TaskGroup) -> None:
        """Gives a server a row whenever it has a slot."""
        while True:
            await lane.acquire()
            lane.starved = True
            job = await backlog.take()
            lane.starved = False
            if job is None:
                return
            group.create_task(self._answer(lane, job, backlog))

    async def _answer(self, lane: Lane, job: Job, backlog: Backlog) -> None:
        """One row, from its slot to the journal or back to the backlog."""
        try:
            self._record(job, await regenerate(job, lane, self.recipe))
        except RowDropped as dropped:
            self.journal.dropped_row(job.key, dropped.kind)
            self.statistics.dropped[dropped.kind] += 1
        except RowFailed as failure:
            self._record_failure(job, failure)
        except SetAside as error:
            job.lost += error.mine
            if job.lost < self.patience.attempts:
                backlog.give_back(job)
                return
            self._record_failure(job, RowFailed("server_lost", f"the server failed at it {job.lost} times"))
        finally:
            lane.release()
        backlog.finish()

    def _record(self, job: Job, made: Regenerated) -> None:
        self.journal.answered(job.key, made.row(job, self.recipe))
        self.statistics.add(made)

    def _record_failure(self, job: Job, failure: RowFailed) -> None:
        self.journal.failed(job.key, failure.kind, str(failure))
        self.statistics.add_failure(failure.kind, str(failure))
        failed = self.statistics.failures.total()
        if failed > self.budget:
            raise DataError(
                f"{failed} of {self.statistics.total} rows failed, more than max_failed_share "
                f"allows (raise it to go on without them): {self.statistics.failure_summary()}"
            )

    async def _keep_well(self, lane: Lane) -> None:
        """Connects a server again whenever it was set aside, until it is gone for good."""
        while True:
            await lane.watch()
            others = any(other.well for other in self.lanes)
            self.say(f"{lane.server.url} is set aside: {lane.reason}" + ("; the others go on" if others else ""))
            while not (lane.well or lane.gone):
                await asyncio.sleep(self.patience.wait(lane.connects + 1))
                await self._reconnect(lane)
            if lane.gone:
                self._leave(lane, lane.gone)
                return
            self.say(f"{lane.server.url} answers again")

    async def _reconnect(self, lane: Lane) -> None:
        try:
            await lane.reconnect()
        except ServerEnded as error:
            lane.gone = error
        except TransientError as error:
            lane.reason = str(error)
        except SpecdecError as error:
            lane.gone = error
        except Exception as error:  # noqa: BLE001 - what a strange server makes it raise must not end the others' work
            lane.reason = f"{type(error).__name__}: {error}"

    async def _bound_outage(self) -> None:
        """Raises ServerError when there has been no server for too long. A connection alone does not end an outage:
        the time without a server adds up until one has answered."""
        tick, dark = min(1.0, self.patience.outage / 10), 0.0
        while dark < self.patience.outage:
            before = time.monotonic()
            await asyncio.sleep(tick)
            if any(lane.statistics.last_answer >= before for lane in self.lanes):
                dark = 0.0
            elif not any(lane.well for lane in self.lanes):
                dark += tick
        reasons = "; ".join(f"{lane.server.url}: {lane.reason}" for lane in self.lanes)
        raise ServerError(
            f"no server has answered for {self.patience.outage:.0f} s ({reasons}); what was answered is kept: run "
            "the same command again"
        )

    def _leave(self, lane: Lane, error: SpecdecError) -> None:
        """Goes on without a server. Raises its error where it was the last one."""
        if all(other.gone for other in self.lanes):
            raise error
        self.say(f"{lane.server.url} is left out from here on: {error}")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
