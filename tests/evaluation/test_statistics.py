"""Intervals that hold: they cover the truth as often as they say, also of few prompts of very different lengths."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evaluation import ratio_interval
from specdec.evaluation import statistics as module
from specdec.evaluation.statistics import Interval, difference_interval
from tests.evaluation.processes import prompts, truth, two_drafters

TRIALS = 3000


def covers(interval: Interval, value: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= value <= interval.high


@pytest.fixture(scope="module")
def expected() -> float:
    return truth()


@pytest.mark.parametrize("count", [20, 50, 100])
def test_intervals_cover_the_truth(count: int, expected: float) -> None:
    """Percentiles of the resampled ratios, the usual bootstrap, cover 88, 92 and 93 % here."""
    random = np.random.default_rng(count)
    found = [ratio_interval(*prompts(random, count), 200, 0.95, trial) for trial in range(TRIALS)]
    assert 0.93 <= np.mean([covers(interval, expected) for interval in found]) <= 0.97


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_handful_of_prompts_claims_no_more(count: int, expected: float) -> None:
    random = np.random.default_rng(count)
    found = [ratio_interval(*prompts(random, count), 200, 0.95, trial) for trial in range(TRIALS // 2)]
    assert 0.92 <= np.mean([covers(interval, expected) for interval in found]) <= 0.985
    assert all(np.isfinite([i.low, i.high]).all() for i in found)


def test_ratios_of_times_are_covered() -> None:
    """Speedup: seconds over seconds, of prompts whose speedups differ."""
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(TRIALS):
        drafted = np.exp(0.8 * random.normal(size=30))
        covered += covers(ratio_interval(drafted * random.gamma(6, 0.3, 30), drafted, 200, 0.95, trial), 1.8)
    assert 0.93 <= covered / TRIALS <= 0.97


@pytest.mark.parametrize("count", [20, 100])
def test_differences_of_the_same_prompts_cover_the_truth(count: int) -> None:
    wide = two_drafters(np.random.default_rng(99), 1_000_000, 0.1)
    expected = wide[0][0].sum() / wide[0][1].sum() - wide[1][0].sum() / wide[1][1].sum()
    random = np.random.default_rng(count)
    covered = narrower = 0
    for trial in range(TRIALS // 3):
        ours, theirs = two_drafters(random, count, 0.1)
        found = difference_interval(ours, theirs, 200, 0.95, trial)
        covered += covers(found, expected)
        alone = ratio_interval(*ours, 100, 0.95, trial)
        assert found.high is not None
        assert alone.high is not None
        narrower += found.high - found.value < alone.high - alone.value
    assert 0.93 <= covered / (TRIALS // 3) <= 0.97
    assert narrower > 0.9 * (TRIALS // 3)  # what the drafters share cancels out


def test_a_ratio_of_sums() -> None:
    interval = ratio_interval([1, 30], [10, 30], 500, 0.9, 0)
    assert interval.value == pytest.approx(31 / 40)
    assert interval.low == 0, "accepted tokens over steps are never negative"
    assert interval.high is not None
    assert interval.high > 1.5, "two prompts say little"
    assert interval.plus(1).value == pytest.approx(1 + 31 / 40)
    assert (interval.at_most(1).high, interval.at_most(99)) == (1, interval)


def test_one_prompt_has_no_interval_and_no_step_no_length() -> None:
    assert ratio_interval([3], [4], 100, 0.95, 0).as_dict() == {"value": 0.75, "low": None, "high": None}
    assert ratio_interval([0, 0], [0, 0], 100, 0.95, 0).as_dict() == {"value": 0, "low": None, "high": None}
    assert ratio_interval([3, 0], [4, 0], 100, 0.95, 0).high is None, "a prompt without a step says nothing"
    assert ratio_interval([3, 1, 0], [4, 5, 0], 100, 0.95, 0) == ratio_interval([3, 1], [4, 5], 100, 0.95, 0)


def test_prompts_that_all_say_the_same_leave_no_doubt() -> None:
    assert ratio_interval([0, 0, 0], [4, 9, 2], 100, 0.95, 0).as_dict() == {"value": 0, "low": 0, "high": 0}


def test_one_odd_prompt_among_equal_ones_keeps_the_interval_finite() -> None:
    """Resamples without it have next to no spread, and measured by that the figure is endlessly far away."""
    plain = 1.5 + 1e-4 * np.arange(20.0)
    plain[7] = 3
    found = ratio_interval(plain, np.ones(20), 500, 0.95, 0)
    assert found.high is not None
    assert found.high - found.value == pytest.approx(2 * 2.0930 * plain.std(ddof=1) / 20**0.5, rel=1e-3)


def test_a_drafter_against_itself_is_no_difference() -> None:
    same = ([3, 10, 7], [4, 20, 9])
    assert difference_interval(same, same, 200, 0.95, 0).as_dict() == {"value": 0, "low": 0, "high": 0}
    one = difference_interval(([3], [4]), ([1], [4]), 200, 0.95, 0)
    assert one.as_dict() == {"value": 0.5, "low": None, "high": None}
    none = difference_interval(([0, 0], [0, 0]), ([1, 2], [4, 2]), 50, 0.95, 0)
    assert none.as_dict() == {"value": -0.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="2 prompts are compared with 1"):
        difference_interval(([1, 2], [3, 4]), ([1], [2]), 50, 0.95, 0)


Rows = list[tuple[int, int]]
rows = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30)


@given(rows=rows, seed=st.integers(0, 9), factor=st.sampled_from([0.25, 8.0]))
def test_any_prompts(rows: Rows, seed: int, factor: float) -> None:
    """The same seed gives the same interval, the value lies inside, and a unit (ms for s) only scales it."""
    steps = np.array([s for s, _ in rows])
    accepted = np.array([min(a, 3 * s) for s, a in rows])
    found = ratio_interval(accepted, steps, 100, 0.95, seed)
    assert found == ratio_interval(accepted, steps, 100, 0.95, seed)
    scaled = ratio_interval(factor * accepted, steps, 100, 0.95, seed)
    assert scaled.value == pytest.approx(factor * found.value)
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= found.value <= found.high < np.inf
        assert (scaled.low, scaled.high) == pytest.approx((factor * found.low, factor * found.high), abs=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted, steps = prompts(np.random.default_rng(0), 40)
    whole = ratio_interval(accepted, steps, 300, 0.95, 1)
    monkeypatch.setattr(module, "BLOCK", 40 * 7)
    assert ratio_interval(accepted, steps, 300, 0.95, 1) == whole


def test_it_is_quick() -> None:
    accepted, steps = prompts(np.random.default_rng(0), 100)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        ratio_interval(accepted, steps, 2000, 0.95, 0)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1
