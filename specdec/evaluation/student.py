"""Student's t: how far a figure of a few prompts may lie from the truth."""

import math

import numpy as np

_HALVINGS = 60  # of the bracket: to the last bits of a float


def student_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| <= t) = confidence, for 1 or more whole degrees of freedom.

    Abramowitz and Stegun 26.7.3 and 26.7.4: P is a finite sum of powers of cos(theta), t = sqrt(degrees) tan(theta).
    """
    even = degrees % 2 == 0
    terms = np.arange(degrees // 2)
    steps = terms[1:]
    ratios = (2 * steps - 1) / (2 * steps) if even else 2 * steps / (2 * steps + 1)
    factors = np.cumprod(np.concatenate([[1.0], ratios]))[: len(terms)]
    powers = 2 * terms if even else 2 * terms + 1

    def inside(theta: float) -> float:
        total = math.sin(theta) * float(factors @ math.cos(theta) ** powers)
        return total if even else 2 / math.pi * (theta + total)

    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
