"""Intervals that hold: they cover the truth as often as they say."""

import numpy as np
import pytest

from specdec.evaluation import ratio_interval
from specdec.evaluation.statistics import difference_interval


def test_intervals_cover_the_truth() -> None:
    """Long prompts are accepted more often than short ones, so that a mean of ratios would miss the truth."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        long = rng.random(80) < 0.5
        steps = np.where(long, 50, 10)
        rates = np.where(long, rng.beta(8, 2, 80), rng.beta(4, 6, 80))
        truth = (50 * 0.8 + 10 * 0.4) / 60
        interval = ratio_interval(rng.binomial(steps, rates), steps, 400, 0.95, trial)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 300 <= 0.98


def test_a_ratio_of_sums() -> None:
    interval = ratio_interval([1, 30], [10, 30], 500, 0.9, 0)
    assert interval.value == pytest.approx(31 / 40)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(1.0)
    assert interval.plus(1).value == pytest.approx(1 + 31 / 40)


def test_one_prompt_has_no_interval_and_no_step_no_length() -> None:
    assert ratio_interval([3], [4], 100, 0.95, 0).as_dict() == {"value": 0.75, "low": None, "high": None}
    assert ratio_interval([0, 0], [0, 0], 100, 0.95, 0).value == 0


def test_differences_of_the_same_prompts_cover_the_truth() -> None:
    """Prompts differ more than the drafters do: intervals of each alone would overlap, and say nothing."""
    rng = np.random.default_rng(0)
    covered = decided = 0
    for trial in range(300):
        steps = rng.integers(10, 60, 100)
        ease = rng.beta(2, 2, 100)
        ours, theirs = rng.binomial(steps, ease), rng.binomial(steps, 0.9 * ease)
        found = difference_interval((ours, steps), (theirs, steps), 400, 0.95, trial)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.05 <= found.high
        decided += found.low > 0
    assert 0.92 <= covered / 300 <= 0.98
    assert decided > 270


def test_a_drafter_against_itself_is_no_difference() -> None:
    same = ([3, 10, 7], [4, 20, 9])
    assert difference_interval(same, same, 200, 0.95, 0).as_dict() == {"value": 0, "low": 0, "high": 0}
    one = difference_interval(([3], [4]), ([1], [4]), 200, 0.95, 0)
    assert one.as_dict() == {"value": 0.5, "low": None, "high": None}
    assert difference_interval(([0, 0], [0, 0]), ([1, 2], [4, 2]), 50, 0.95, 0).value == -0.5
    with pytest.raises(ValueError, match="2 prompts are compared with 1"):
        difference_interval(([1, 2], [3, 4]), ([1], [2]), 50, 0.95, 0)
