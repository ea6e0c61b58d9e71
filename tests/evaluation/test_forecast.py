"""The part of a step that is neither drafting nor the base's pass, from measurements of another moment."""

import pytest

from specdec.drafters.prompt_lookup import PromptLookup
from specdec.evaluation.forecast import _overhead
from specdec.evaluation.measure import PromptMeasurement, Way
from specdec.evaluation.prediction import StepTimes

PLAIN, MAIN = Way("no drafter"), Way("chain of 2", PromptLookup(2))
# A pass takes 10 ms, of three tokens 12; two drafts take 4.
TIMES = StepTimes({1: {1: 0.010, 3: 0.012}}, {1: 0.002, 2: 0.004}, context=9)


def measured(seconds_a_step: float, steps: int = 10) -> list[PromptMeasurement]:
    """Two passes over one prompt, which took a second until its first token."""
    seconds = 1 + steps * seconds_a_step
    entry = PromptMeasurement("p", "c", 3, [1] * (steps + 1), [], steps, 0, [0, 0], [steps + 1])
    entry.seconds, entry.prompt_seconds = [seconds] * 2, [1.0] * 2
    return [entry]


@pytest.mark.parametrize("slower", [1, 3])
def test_overhead_is_what_is_left_of_a_step(slower: int) -> None:
    """A step took 2.1 plain ones: 21 ms of which 16 are known. A machine that was slower then changes nothing."""
    found = {PLAIN.name: measured(0.010 * slower), MAIN.name: measured(0.021 * slower)}
    assert _overhead(TIMES, MAIN, PLAIN, found) == pytest.approx(0.005)


def test_there_is_none_where_no_step_was_made_or_nothing_is_left() -> None:
    assert _overhead(TIMES, MAIN, PLAIN, {PLAIN.name: measured(0.01, 0), MAIN.name: measured(0.02, 0)}) == 0
    assert _overhead(TIMES, MAIN, PLAIN, {PLAIN.name: measured(0.010), MAIN.name: measured(0.011)}) == 0
