"""Bootstrap intervals over prompts.

Every figure here is a ratio of sums over prompts (accepted tokens over steps, seconds over seconds), so prompts
are what is drawn again: tokens of one prompt are not independent of each other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval; the ends are None when one prompt alone allows none."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def plus(self, shift: float) -> "Interval":
        low = None if self.low is None else self.low + shift
        return Interval(self.value + shift, low, None if self.high is None else self.high + shift)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, samples: int, confidence: float, seed: int
) -> Interval:
    """sum(numerators[N]) / sum(denominators[N]) with its percentile bootstrap interval over the N prompts.

    0 when the denominators sum to 0 (no step was made: nothing was accepted).
    """
    return _interval([_pair(numerators, denominators)], samples, confidence, seed)


def difference_interval(
    ours: tuple[ArrayLike, ArrayLike],
    theirs: tuple[ArrayLike, ArrayLike],
    samples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """The ratio of `ours` (numerators[N], denominators[N]) minus that of `theirs`, over the same N prompts.

    A resample draws the same prompts for both: what they share cancels out.
    """
    pairs = [_pair(*ours), _pair(*theirs) * [[-1], [1]]]
    if pairs[0].shape != pairs[1].shape:
        raise ValueError(f"{pairs[0].shape[1]} prompts are compared with {pairs[1].shape[1]}")
    return _interval(pairs, samples, confidence, seed)


def _pair(numerators: ArrayLike, denominators: ArrayLike) -> Figures:
    return np.array([numerators, denominators], dtype=float)


def _interval(pairs: list[Figures], samples: int, confidence: float, seed: int) -> Interval:
    """Of the sum of the pairs' ratios; each pair is [2, N]."""
    count = pairs[0].shape[1]
    value = sum(float(_ratios(pair.sum(1))) for pair in pairs)
    if count < 2:
        return Interval(value, None, None)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(samples):  # one at a time: all at once would take gigabytes for a large prompt file
        draw = random.integers(0, count, count)
        found.append(sum(float(_ratios(pair[:, draw].sum(1))) for pair in pairs))
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _ratios(sums: Figures) -> Figures:
    """sums[2, ...]: numerators and denominators; 0 where the denominator is."""
    return np.divide(sums[0], sums[1], out=np.zeros_like(sums[0]), where=sums[1] != 0)
