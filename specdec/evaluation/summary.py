"""From measured prompts to the figures of an evaluation, by the definitions of docs/architecture.md."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from specdec.evaluation.measure import PromptMeasurement, Way
from specdec.evaluation.statistics import Interval, ratio_interval


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, confidence (0.95 is 95 %), seed."""

    samples: int
    confidence: float
    seed: int

    def ratio(self, tops: list[float], bottoms: list[float]) -> Interval:
        return ratio_interval(tops, bottoms, self.samples, self.confidence, self.seed)


def summarize(
    way: Way, prompts: list[PromptMeasurement], plain: list[PromptMeasurement], bootstrap: Bootstrap
) -> dict[str, Any]:
    """One way's figures, overall and by category. plain: the same prompts without a drafter, at the same sampling.

    time_to_first_token: median over prompts, in seconds. draft_share: of a step's time, behind the prompt's.
    lossless: every token of every pass equals plain decoding; None where tokens are sampled.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[prompt.category].append(i)
    return {
        "temperature": way.sampling.temperature,
        **_figures(prompts, plain, bootstrap),
        "conditional_rates": conditional_rates(position_rates(prompts)),
        "tokens_per_second": {"plain": _throughput(plain), "drafter": _throughput(prompts)},
        "time_to_first_token": {"plain": _first_token(plain), "drafter": _first_token(prompts)},
        "draft_share": _draft_share(prompts),
        "lossless": all(p.first_difference is None for p in prompts) if way.sampling.greedy else None,
        "steps": sum(p.steps for p in prompts),
        "drafted_per_step": sum(p.drafted for p in prompts) / max(1, sum(p.steps for p in prompts)),
        "categories": {
            name: _figures([prompts[i] for i in places], [plain[i] for i in places], bootstrap)
            for name, places in sorted(groups.items())
        },
    }


def position_rates(prompts: list[PromptMeasurement]) -> list[float]:
    """r_i = accepted at position i / steps."""
    steps = max(1, sum(p.steps for p in prompts))
    return [sum(at) / steps for at in zip(*(p.accepted_at for p in prompts), strict=True)]


def conditional_rates(rates: list[float]) -> list[float]:
    """r_i / r_(i-1), with r_0 = 1; 0 behind a position that was never accepted."""
    return [rate / before if before else 0.0 for before, rate in zip([1.0, *rates], rates, strict=False)]


def acceptance_pair(prompts: list[PromptMeasurement]) -> tuple[list[float], list[float]]:
    """(accepted tokens, steps) of each prompt: the ratio of their sums is the acceptance length less 1."""
    return [p.accepted for p in prompts], [p.steps for p in prompts]


def speed_pair(prompts: list[PromptMeasurement], plain: list[PromptMeasurement]) -> tuple[list[float], list[float]]:
    """(seconds without the drafter, seconds with it) of each prompt, for the tokens that the drafter's answer has:
    sampled answers differ in length, so plain steps count at the time that one took on the prompt (over all prompts,
    where it made none)."""
    steps = sum(p.steps * len(p.seconds) for p in plain)
    mean = sum(p.stepping for p in plain) / max(1, steps)

    def seconds(ours: PromptMeasurement, p: PromptMeasurement) -> float:
        step = p.stepping / (p.steps * len(p.seconds)) if p.steps else mean
        return sum(p.seconds) + step * (len(ours.token_ids) - len(p.token_ids)) * len(p.seconds)

    without = [seconds(ours, p) for ours, p in zip(prompts, plain, strict=True)]
    return without, [sum(p.seconds) for p in prompts]


def _figures(
    prompts: list[PromptMeasurement], plain: list[PromptMeasurement], bootstrap: Bootstrap
) -> dict[str, Any]:
    most = len(prompts[0].accepted_at)  # a step accepts no more than is drafted
    return {
        "acceptance_length": bootstrap.ratio(*acceptance_pair(prompts)).at_most(most).plus(1).as_dict(),
        "position_rates": position_rates(prompts),
        "speedup": bootstrap.ratio(*speed_pair(prompts, plain)).as_dict(),
        "prompts": len(prompts),
        "tokens": sum(len(p.token_ids) for p in prompts),
    }


def _throughput(prompts: list[PromptMeasurement]) -> float:
    tokens = sum(len(p.token_ids) * len(p.seconds) for p in prompts)
    return tokens / max(1e-9, sum(sum(p.seconds) for p in prompts))


def _first_token(prompts: list[PromptMeasurement]) -> float:
    return median(seconds for p in prompts for seconds in p.first_token_seconds)


def _draft_share(prompts: list[PromptMeasurement]) -> float:
    return sum(sum(p.draft_seconds) for p in prompts) / max(1e-9, sum(p.stepping for p in prompts))
