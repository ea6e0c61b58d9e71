"""Made-up prompts whose true figures are known: the law that intervals and tests are tried on."""

import numpy as np

DRAFTS = 3
SPREAD = 0.8  # of the logarithm of the steps: one prompt in twenty makes five times as many as the median


def prompts(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(accepted[N], steps[N]): hard prompts need more steps and accept less in each."""
    hard = random.normal(size=count)
    steps = np.clip(np.exp(3.5 + SPREAD * hard), 1, 200).round().astype(int)
    ease = 1 / (1 + np.exp(0.2 + 0.5 * hard - 0.6 * random.normal(size=count)))
    return random.binomial(DRAFTS * steps, ease), steps


def truth() -> float:
    """Accepted per step over all the prompts there could be (to about 0.0002)."""
    accepted, steps = prompts(np.random.default_rng(12345), 4_000_000)
    return float(accepted.sum() / steps.sum())


def two_drafters(
    random: np.random.Generator, count: int, gain: float
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(accepted[N], steps[N]) of two drafters on the same prompts, the first accepting `gain` (0.1: a tenth) more.

    Prompts differ far more than drafters do, and a better drafter makes fewer steps.
    """
    tokens = np.clip(np.exp(4.5 + SPREAD * random.normal(size=count)), 5, 512)
    ease = random.beta(2, 3, count)

    def one(factor: float) -> tuple[np.ndarray, np.ndarray]:
        own = np.clip(ease * factor + 0.05 * random.normal(size=count), 0.01, 0.95)
        steps = np.ceil(tokens / (1 + DRAFTS * own)).astype(int)
        return random.binomial(DRAFTS * steps, own), steps

    return one(1 + gain), one(1)
