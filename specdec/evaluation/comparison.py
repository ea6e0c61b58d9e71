"""Two drafters on the same prompts: is one better, or is it chance?

The test asks how often a difference as large comes up when, prompt by prompt, a coin decides which drafter gets which
result (a permutation test of paired results; Phipson and Smyth 2010, "Permutation P-values should never be zero").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from specdec.evaluation.statistics import (
    BLOCK,
    Figures,
    Interval,
    counted,
    difference_interval,
    ratios,
    signed_pairs,
)

EXACT = 12  # prompts up to which every swap is tried: 4,096
_ROUNDING = 1e-9  # of the ratios compared: differences that are this close are the same

Pair = tuple[ArrayLike, ArrayLike]  # numerators[N], denominators[N]
Verdict = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Comparison:
    """Ours less theirs. p_value: see `paired_test`."""

    difference: Interval
    p_value: float | None
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        return {"difference": self.difference.as_dict(), "p_value": self.p_value, "verdict": self.verdict}


def compare(ours: Pair, theirs: Pair, samples: int, confidence: float, seed: int) -> Comparison:
    """Whether the ratio of sums of `ours` differs from that of `theirs`, over the same N prompts.

    "better" (larger) or "worse" only where the p-value is at most 1 - confidence and the interval lies on one side
    of 0 too. One prompt has neither: another prompt could have said the opposite, so it is "no difference". Fewer
    than six can never reach 0.05. Raises ValueError when the numbers of prompts differ.
    """
    difference = difference_interval(ours, theirs, samples, confidence, seed)
    p_value = paired_test(ours, theirs, samples, seed)
    return Comparison(difference, p_value, _verdict(difference, p_value, 1 - confidence))


def _verdict(difference: Interval, p_value: float | None, level: float) -> Verdict:
    if p_value is None or p_value > level or difference.low is None or difference.high is None:
        return "no difference"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference"


def paired_test(ours: Pair, theirs: Pair, samples: int, seed: int) -> float | None:
    """The two-sided p-value of the difference of the ratios of sums, under swaps of prompts' results.

    Exact for up to EXACT prompts; else (b + 1) / (m + 1) of m = `samples` random swaps, b of them as large. None
    where fewer than two prompts made a step. Raises ValueError when the numbers of prompts differ.
    """
    pairs = counted(signed_pairs(ours, theirs))
    count = pairs[0].shape[1]
    if count < 2:
        return None
    mine, other = pairs[0], pairs[1] * [[-1], [1]]
    observed = float(_distance(mine, other, np.zeros((1, count)))[0])
    least = observed - _ROUNDING * max(float(ratios(pair.sum(1))) for pair in (mine, other))
    exact = count <= EXACT
    swaps = _all_swaps(count) if exact else _random_swaps(count, samples, seed)
    tried = larger = 0
    for block in swaps:
        tried += len(block)
        larger += int((_distance(mine, other, block) >= least).sum())
    return larger / tried if exact else (larger + 1) / (tried + 1)


def _distance(mine: Figures, other: Figures, swapped: Figures) -> Figures:
    """|ratio of mine - ratio of other| [S] where swapped[S, N] is 1 for prompts whose results change places."""
    moved = swapped @ (other - mine).T  # [S, 2]
    return np.abs(ratios((mine.sum(1) + moved).T) - ratios((other.sum(1) - moved).T))


def _all_swaps(count: int) -> Iterator[Figures]:
    """[2^N, N]: nobody swapped is among them."""
    yield (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(float)


def _random_swaps(count: int, samples: int, seed: int) -> Iterator[Figures]:
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // count)
    for start in range(0, samples, rows):
        yield random.integers(0, 2, (min(rows, samples - start), count)).astype(float)
