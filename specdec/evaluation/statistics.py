"""Bootstrap intervals over prompts.

Every figure here is a ratio of sums over prompts (accepted tokens over steps, seconds over seconds), so prompts
are what is drawn again: tokens of one prompt are not independent of each other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


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
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value = _ratio(top.sum(), bottom.sum())
    if len(top) < 2:
        return Interval(value, None, None)
    draws = np.random.default_rng(seed).integers(0, len(top), size=(samples, len(top)))
    ratios = [_ratio(top[draw].sum(), bottom[draw].sum()) for draw in draws]
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _ratio(top: float, bottom: float) -> float:
    return float(top / bottom) if bottom else 0.0
