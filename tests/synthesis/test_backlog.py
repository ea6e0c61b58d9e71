"""Each job out once at a time, whoever takes and gives back in whatever order; everyone is told of the end."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.synthesis.backlog import Backlog, Job


def jobs(count: int) -> Iterator[Job]:
    return (Job({"id": str(number)}, 0) for number in range(count))


@given(count=st.integers(0, 30), takers=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_every_job_is_finished_once(count: int, takers: int, seed: int) -> None:
    draw, finished, out = random.Random(seed), Counter[str](), set[str]()

    async def taker(backlog: Backlog) -> None:
        while job := await backlog.take():
            assert job.key not in out
            out.add(job.key)
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
            out.remove(job.key)
            if draw.random() < 0.4:
                backlog.give_back(job)
            else:
                finished[job.key] += 1
                backlog.finish()

    async def all_of_them() -> None:
        backlog = Backlog(jobs(count))
        async with asyncio.timeout(5):
            await asyncio.gather(backlog.done.wait(), *(taker(backlog) for _ in range(takers)))

    asyncio.run(all_of_them())
    assert finished == {f"{number}/0": 1 for number in range(count)}


def test_the_end_needs_no_taker() -> None:
    """The last job ends while all servers are set aside."""

    async def run() -> None:
        backlog = Backlog(jobs(1))
        assert await backlog.take()
        assert not backlog.done.is_set()
        backlog.finish()
        assert backlog.done.is_set()
        assert Backlog(jobs(0)).done.is_set()

    asyncio.run(run())


def test_who_waits_gets_what_is_given_back() -> None:
    async def run() -> None:
        backlog = Backlog(jobs(2))
        first, second = await backlog.take(), await backlog.take()
        waiting = [asyncio.create_task(backlog.take()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        assert first
        assert second
        backlog.give_back(first)
        await asyncio.sleep(0.01)
        assert [task.result() for task in waiting if task.done()] == [first]
        backlog.finish()
        backlog.finish()
        assert [await task for task in waiting].count(None) == 2

    asyncio.run(run())


def test_jobs_are_drawn_no_earlier_than_they_are_taken() -> None:
    drawn: list[str] = []

    def watched() -> Iterator[Job]:
        for job in jobs(100):
            drawn.append(job.key)
            yield job

    async def run() -> None:
        backlog = Backlog(watched())
        for taken in range(1, 50):
            await backlog.take()
            assert len(drawn) == taken

    asyncio.run(run())


def test_an_error_of_the_source_comes_out() -> None:
    def broken() -> Iterator[Job]:
        yield from jobs(1)
        raise ValueError("line 2 is no JSON")

    async def run() -> None:
        backlog = Backlog(broken())
        await backlog.take()
        with pytest.raises(ValueError, match="line 2"):
            await backlog.take()

    asyncio.run(run())
