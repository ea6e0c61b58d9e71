"""The number of requests in flight, against a simulated batching server on a virtual clock."""

import statistics

import pytest

from specdec.synthesis.limit import Limit
from tests.synthesis.batching import TOKENS, Batching, knee

KNEES = (4, 10, 32, 100, 300, 1000)
SPEED = 20.0  # tokens a second of one request


def settled(server: Batching, answers: int) -> Limit:
    """A limit that has seen so many answers of this server."""
    limit = Limit(clock=lambda: server.now)
    while server.served < answers * TOKENS:
        server.drive(limit, 1.0)
    return limit


def after(server: Batching, limit: Limit, answers: int, best: float) -> tuple[list[int], float]:
    """The limit's values over so many answers, and the share of the best throughput."""
    values, shares = [], []
    for _ in range(20):
        shares.append(server.drive(limit, answers * TOKENS / best / 20) / best)
        values.append(limit.value)
    return values, statistics.mean(shares)


@pytest.mark.parametrize("falling", [0.0, 0.1])
@pytest.mark.parametrize("at", KNEES)
def test_it_finds_the_knee_and_keeps_the_throughput(at: int, falling: float) -> None:
    found, kept = [], []
    for seed in range(5):
        server = Batching(knee(at, SPEED, falling), noise=0.1, seed=seed)
        limit = settled(server, max(1500, 40 * at))
        values, share = after(server, limit, max(1500, 30 * at), SPEED * at)
        found.append(statistics.median(values) / at)
        kept.append(share)
    assert 0.5 <= statistics.median(found) <= 2
    assert min(found) >= 0.45, "never far below: that would cost throughput"
    assert min(kept) >= 0.9


def test_a_server_that_slows_down_by_half_is_followed() -> None:
    server = Batching(knee(100), noise=0.1)
    limit = settled(server, 2500)
    server.throughput = knee(50)
    server.drive(limit, 900)
    values, share = after(server, limit, 1500, SPEED * 50)
    assert share > 0.9
    assert statistics.median(values) < 130
    server.throughput = knee(100)
    server.drive(limit, 900)
    assert after(server, limit, 1500, SPEED * 100)[1] > 0.85, "and back again"


@pytest.mark.parametrize("phase", range(12))
def test_a_server_that_slumps_gets_fewer_at_once(phase: int) -> None:
    """Every answer takes four times as long. The next look around, perhaps sixteen rounds away, is not waited for."""
    server = Batching(knee(100), noise=0.1, seed=phase)
    limit = settled(server, 4000 + 170 * phase)
    most, served = limit.value, server.served
    server.throughput = knee(25)
    while limit.value >= most and server.served - served < 40 * most * TOKENS:
        server.drive(limit, 0.5)
        most = max(most, limit.value)
    assert server.served - served < 4 * most * TOKENS, "rounds of as many answers as requests are in flight"


def test_refusals_step_down_once_a_round_trip() -> None:
    limit = Limit(start=100, most=1000)
    for _ in range(100):  # all that were in flight are refused
        limit.overloaded()
    assert limit.value == 70
    for _ in range(2):
        limit.overloaded()
    assert limit.value == 49


def test_answers_between_refusals_count_for_the_round_trip() -> None:
    limit = Limit(start=100, most=1000)
    limit.overloaded()
    for _ in range(50):
        limit.answered(10, True)
        limit.overloaded()
    assert limit.value == 70


def test_it_recovers_from_an_overload() -> None:
    server = Batching(knee(200), noise=0.1)
    limit = settled(server, 4000)
    for _ in range(4 * 1024):
        limit.overloaded()
    low = limit.value
    assert low < 10
    server.drive(limit, 600)
    assert after(server, limit, 2000, SPEED * 200)[1] > 0.85


def test_a_server_that_refuses_above_a_number_is_kept_near_it() -> None:
    server = Batching(knee(1000), full=60)
    limit = settled(server, 6000)
    values, share = after(server, limit, 3000, SPEED * 60)
    assert max(values) <= 90
    assert share > 0.8
    assert server.refused < 400


@pytest.mark.parametrize("most", [1, 3, 40])
def test_never_above_most_and_never_below_one(most: int) -> None:
    server = Batching(knee(500))
    limit = Limit(most=most, clock=lambda: server.now)
    for _ in range(400):
        server.drive(limit, 5.0)
        assert 1 <= limit.value <= most
    for _ in range(2000):
        limit.overloaded()
        assert limit.value >= 1


def test_without_enough_rows_nothing_changes() -> None:
    server = Batching(knee(500))
    limit = Limit(clock=lambda: server.now)
    server.drive(limit, 5000, saturated=False)
    assert limit.value == 32


def test_a_fixed_number_stays_and_comes_back_after_an_overload() -> None:
    server = Batching(knee(4))
    limit = Limit(16, 16, fixed=True, halved=2, clock=lambda: server.now)
    assert limit.value == 4
    server.drive(limit, 200)
    assert limit.value == 16, "though 4 would do"
    server.drive(limit, 2000)
    assert limit.value == 16
    for _ in range(60):
        limit.overloaded()
    assert limit.value < 10
    server.drive(limit, 4000)
    assert limit.value == 16


def test_after_an_overload_it_still_goes_down_where_fewer_are_enough() -> None:
    server = Batching(knee(100), noise=0.1)
    limit = settled(server, 4000)
    limit.overloaded()
    server.drive(limit, 300)
    server.throughput = knee(20, speed=100.0)
    server.drive(limit, 12_000)
    assert after(server, limit, 1000, 100.0 * 20)[1] > 0.9
    assert limit.value < 50
