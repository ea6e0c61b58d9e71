"""Intervals over prompts that hold what they say: symmetric bootstrap-t.

Every figure here is a ratio of sums over prompts (accepted tokens over steps, seconds over seconds), so prompts
are what is drawn again: tokens of one prompt are not independent of each other.

An interval is `figure +- factor * standard error`. The standard error is the jackknife's: what leaving out each
prompt changes. The factor is what |resample - figure| reached in units of the resample's own standard error (there
the delta method's: a prompt with numerator a and denominator s moves the ratio R by (a - R s) / sum(s)). A few long
prompts make the standard error uncertain; this sees it, and percentiles of the resampled figures do not (Hall 1988,
"On symmetric bootstrap confidence intervals"). The factor is kept between one and two times Student's t, because of
a handful of prompts many resamples have no spread at all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specdec.evaluation.student import student_quantile

Figures = NDArray[np.float64]

BLOCK = 1 << 18  # prompts times resamples that are held at a time
WIDEST = 2.0  # times Student's t
_NO_SPREAD = 1e-6  # of the standard error: less than this in a resample is rounding


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

    def at_most(self, most: float) -> "Interval":
        """Without what is above `most`, which the figure cannot reach."""
        return Interval(self.value, self.low, None if self.high is None else max(self.value, min(self.high, most)))


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, samples: int, confidence: float, seed: int
) -> Interval:
    """sum(numerators[N]) / sum(denominators[N]) with its interval over the N prompts; none may be negative.

    Prompts whose numerator and denominator are 0 (no step was made) say nothing and do not count. Where fewer than
    two count there are no ends; where none does the ratio is 0.
    """
    found = _interval([_pair(numerators, denominators)], samples, confidence, seed)
    return found if found.low is None else Interval(found.value, max(0.0, found.low), found.high)


def difference_interval(
    ours: tuple[ArrayLike, ArrayLike],
    theirs: tuple[ArrayLike, ArrayLike],
    samples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """The ratio of `ours` (numerators[N], denominators[N]) minus that of `theirs`, over the same N prompts.

    A resample draws the same prompts for both: what they share cancels out. Raises ValueError when the numbers of
    prompts differ.
    """
    return _interval(signed_pairs(ours, theirs), samples, confidence, seed)


def signed_pairs(ours: tuple[ArrayLike, ArrayLike], theirs: tuple[ArrayLike, ArrayLike]) -> list[Figures]:
    """[2, N] of each, the second with its numerators negated: the sum of their ratios is the difference."""
    pairs = [_pair(*ours), _pair(*theirs) * [[-1], [1]]]
    if pairs[0].shape != pairs[1].shape:
        raise ValueError(f"{pairs[0].shape[1]} prompts are compared with {pairs[1].shape[1]}")
    return pairs


def counted(pairs: list[Figures]) -> list[Figures]:
    """The pairs without the prompts that are 0 in all of them."""
    kept = np.any([pair.any(0) for pair in pairs], 0)
    return [pair[:, kept] for pair in pairs]


def ratios(sums: Figures) -> Figures:
    """sums[2, ...]: numerators and denominators; 0 where the denominator is."""
    return np.divide(sums[0], sums[1], out=np.zeros_like(sums[0]), where=sums[1] != 0)


def _pair(numerators: ArrayLike, denominators: ArrayLike) -> Figures:
    return np.array([numerators, denominators], dtype=float)


def _interval(pairs: list[Figures], samples: int, confidence: float, seed: int) -> Interval:
    """Of the sum of the pairs' ratios; each pair is [2, N]."""
    pairs = counted(pairs)
    value = sum(float(ratios(pair.sum(1))) for pair in pairs)
    count = pairs[0].shape[1]
    if count < 2 or any(pair[1].sum() == 0 for pair in pairs):
        return Interval(value, None, None)
    centred = [_centred(pair) for pair in pairs]
    error = float(_resampled(centred, np.ones((1, count)))[1][0])
    if error == 0:
        return Interval(value, value, value)
    found = np.concatenate([_studentised(centred, weights, error) for weights in _draws(count, samples, seed)])
    place = min(math.ceil(confidence * (samples + 1)), samples) - 1
    student = student_quantile(confidence, count - 1)
    factor = min(max(float(np.partition(found, place)[place]), student), WIDEST * student)
    reach = factor * _jackknife(centred)
    return Interval(value, value - reach, value + reach)


def _centred(pair: Figures) -> Figures:
    """[2, N]: numerators less what the ratio makes of the denominators, so that a resample's ratio is its error."""
    return np.stack([pair[0] - ratios(pair.sum(1)) * pair[1], pair[1]])


def _jackknife(centred: list[Figures]) -> float:
    """The standard error by leaving out each prompt in turn: above the delta method's where one weighs much."""
    moved = np.sum([ratios(np.stack([top, bottom.sum() - bottom])) for top, bottom in centred], 0)
    return math.sqrt((len(moved) - 1) / len(moved) * float((moved**2).sum()))


def _draws(count: int, samples: int, seed: int) -> Iterator[Figures]:
    """How often each resample draws each prompt, some resamples at a time: [S, N]."""
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // count)
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        places = random.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(float)


def _studentised(centred: list[Figures], weights: Figures, error: float) -> Figures:
    """|resample - figure| / the resample's standard error [S]; infinite where it has none."""
    shift, errors = _resampled(centred, weights)
    spread = errors > _NO_SPREAD * error
    return np.divide(np.abs(shift), errors, out=np.full_like(shift, np.inf), where=spread)


def _resampled(centred: list[Figures], weights: Figures) -> tuple[Figures, Figures]:
    """(shift of the figure [S], its standard error [S]) of resamples weights[S, N]."""
    count = weights.shape[1]
    shift = np.zeros(len(weights))
    moved = np.zeros_like(weights)  # by how much each prompt moves the figure
    for top, bottom in centred:
        sums = weights @ bottom
        own = ratios(np.stack([weights @ top, sums]))
        shift += own
        moved += (top - own[:, None] * bottom) / np.where(sums, sums, np.inf)[:, None]
    return shift, np.sqrt((weights * moved**2).sum(1) * count / (count - 1))
