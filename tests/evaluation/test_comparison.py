"""Comparing two drafters: false alarms as rare as stated, differences found, swaps counted exactly."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evaluation import comparison as module
from specdec.evaluation.comparison import EXACT, compare, paired_test
from specdec.evaluation.statistics import Interval
from tests.evaluation.processes import two_drafters

TRIALS = 1000


def p_values(count: int, gain: float, trials: int = TRIALS) -> np.ndarray:
    random = np.random.default_rng(count)
    return np.array([paired_test(*two_drafters(random, count, gain), 200, trial) for trial in range(trials)])


@pytest.mark.parametrize("count", [10, 20, 60])
def test_equal_drafters_are_told_apart_one_time_in_twenty(count: int) -> None:
    found = p_values(count, 0)
    assert 0.03 <= np.mean(found <= 0.05) <= 0.07
    assert 0.16 <= np.mean(found <= 0.2) <= 0.24


def test_a_better_drafter_is_found() -> None:
    few, many = (np.mean(p_values(count, 0.1, 300) <= 0.05) for count in (20, 100))
    assert few < many
    assert many > 0.65


def test_verdicts_are_as_rare_and_as_sure() -> None:
    random = np.random.default_rng(5)
    none = [compare(*two_drafters(random, 30, 0), 200, 0.95, trial).verdict for trial in range(TRIALS)]
    assert 0.02 <= np.mean([verdict != "no difference" for verdict in none]) <= 0.06
    some = [compare(*two_drafters(random, 100, 0.2), 200, 0.95, trial).verdict for trial in range(100)]
    assert some.count("better") > 95
    ours, theirs = two_drafters(random, 100, 0.3)
    assert compare(theirs, ours, 200, 0.95, 0).verdict == "worse"


def by_hand(ours: tuple[list[int], list[int]], theirs: tuple[list[int], list[int]]) -> float:
    """Every swap, written out."""
    both = list(zip(*ours, *theirs, strict=True))

    def distance(swaps: tuple[bool, ...]) -> float:
        placed = [(*row[2:], *row[:2]) if swap else row for row, swap in zip(both, swaps, strict=True)]
        a, s, b, t = map(sum, zip(*placed, strict=True))
        return abs((a / s if s else 0) - (b / t if t else 0))

    every = [distance(swaps) for swaps in itertools.product([False, True], repeat=len(both))]
    return sum(d >= every[0] - 1e-9 for d in every) / len(every)


counts = st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))


@given(rows=st.lists(counts, min_size=2, max_size=6))
def test_few_prompts_are_counted_exactly(rows: list[tuple[int, int, int, int]]) -> None:
    a, s, b, t = (list(column) for column in zip(*rows, strict=True))
    assert paired_test((a, s), (b, t), 10, 0) == by_hand((a, s), (b, t))


@given(rows=st.lists(counts, min_size=2, max_size=30), seed=st.integers(0, 9))
def test_any_two_drafters(rows: list[tuple[int, int, int, int]], seed: int) -> None:
    """Whoever comes first, the p-value is the same; a drafter and itself never differ."""
    a, s, b, t = (list(column) for column in zip(*rows, strict=True))
    found = paired_test((a, s), (b, t), 99, seed)
    assert found is not None
    assert 0 < found <= 1
    assert found == pytest.approx(paired_test((b, t), (a, s), 99, seed))
    itself = compare((a, s), (a, s), 99, 0.95, seed)
    assert itself.difference.as_dict() == {"value": 0, "low": 0, "high": 0}
    assert (itself.p_value, itself.verdict) == (1, "no difference")


def test_random_swaps_come_near_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = two_drafters(np.random.default_rng(3), EXACT, 0.2)
    exact = paired_test(ours, theirs, 1, 0)
    monkeypatch.setattr(module, "EXACT", 1)
    random = paired_test(ours, theirs, 20_000, 0)
    assert random == pytest.approx(exact, abs=0.015)
    assert random == paired_test(ours, theirs, 20_000, 0)
    assert paired_test(([9] * 40, [3] * 40), ([0] * 40, [3] * 40), 99, 0) == 0.01, "never 0: (0 + 1) / (99 + 1)"


def test_one_prompt_says_nothing() -> None:
    found = compare(([9], [3]), ([0], [3]), 99, 0.95, 0)
    assert found.as_dict() == {
        "difference": {"value": 3, "low": None, "high": None},
        "p_value": None,
        "verdict": "no difference",
    }
    assert paired_test(([9, 0], [3, 0]), ([0, 0], [3, 0]), 99, 0) is None, "the other made no step"
    assert compare(([9] * 5, [3] * 5), ([0] * 5, [3] * 5), 99, 0.95, 0).p_value == 2 / 2**5


def test_an_interval_around_0_is_no_difference() -> None:
    """The test and the interval ask alike but not the same: a verdict needs both."""
    verdict = module._verdict
    assert verdict(Interval(0.1, -0.1, 0.3), 0.01, 0.05) == "no difference"
    assert verdict(Interval(0.1, 0.05, 0.3), 0.06, 0.05) == "no difference"
    assert verdict(Interval(0.1, 0.05, 0.3), 0.04, 0.05) == "better"
    assert verdict(Interval(-0.1, -0.3, -0.05), 0.04, 0.05) == "worse"


def test_different_numbers_of_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts are compared with 1"):
        paired_test(([1, 2], [3, 4]), ([1], [2]), 50, 0)
