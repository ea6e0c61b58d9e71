"""From measured prompts to the figures of `metrics/evaluate/D.json`, by the definitions of docs/architecture.md."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from specdec.evaluation.measure import Measurement, PromptMeasurement
from specdec.evaluation.statistics import Interval, ratio_interval


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, confidence (0.95 is 95 %), seed."""

    samples: int
    confidence: float
    seed: int

    def ratio(self, tops: list[float], bottoms: list[float]) -> Interval:
        return ratio_interval(tops, bottoms, self.samples, self.confidence, self.seed)


def summarize(measurement: Measurement, bootstrap: Bootstrap) -> dict[str, Any]:
    """Acceptance length, position and conditional rates, speedup, tokens/s, overall and by category."""
    prompts = measurement.prompts
    groups: dict[str, list[PromptMeasurement]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.category].append(prompt)
    return {
        **_figures(prompts, bootstrap),
        "conditional_rates": conditional_rates(position_rates(prompts)),
        "tokens_per_second": {
            "plain": _throughput(prompts, [p.seconds_plain for p in prompts]),
            "drafter": _throughput(prompts, [p.seconds_drafter for p in prompts]),
        },
        "lossless": all(p.first_difference is None for p in prompts),
        "steps": sum(p.steps for p in prompts),
        "skipped_prompts": measurement.skipped,
        "confidence": bootstrap.confidence,
        "categories": {name: _figures(group, bootstrap) for name, group in sorted(groups.items())},
    }


def losslessness(measurement: Measurement, dtype: str) -> dict[str, Any]:
    """The comparison with plain decoding: every token of every prompt, and where the first one differs."""
    prompts = measurement.prompts
    differing = [
        {"id": p.id, "first_difference": p.first_difference} for p in prompts if p.first_difference is not None
    ]
    return {
        "comparison": "greedy decoding with and without the drafter, token for token",
        "dtype": dtype,
        "prompts": len(prompts),
        "tokens": sum(len(p.token_ids) for p in prompts),
        "passes": len(prompts[0].seconds_plain),
        "lossless": not differing,
        "differing": differing,
    }


def position_rates(prompts: list[PromptMeasurement]) -> list[float]:
    """r_i = accepted at position i / steps."""
    steps = max(1, sum(p.steps for p in prompts))
    return [sum(at) / steps for at in zip(*(p.accepted_at for p in prompts), strict=True)]


def conditional_rates(rates: list[float]) -> list[float]:
    """r_i / r_(i-1), with r_0 = 1; 0 behind a position that was never accepted."""
    return [rate / before if before else 0.0 for before, rate in zip([1.0, *rates], rates, strict=False)]


def _figures(prompts: list[PromptMeasurement], bootstrap: Bootstrap) -> dict[str, Any]:
    accepted = bootstrap.ratio([p.accepted for p in prompts], [p.steps for p in prompts])
    speedup = bootstrap.ratio([sum(p.seconds_plain) for p in prompts], [sum(p.seconds_drafter) for p in prompts])
    return {
        "acceptance_length": accepted.plus(1).as_dict(),
        "position_rates": position_rates(prompts),
        "speedup": speedup.as_dict(),
        "prompts": len(prompts),
        "tokens": sum(len(p.token_ids) for p in prompts),
    }


def _throughput(prompts: list[PromptMeasurement], seconds: list[list[float]]) -> float:
    tokens = sum(len(p.token_ids) * len(taken) for p, taken in zip(prompts, seconds, strict=True))
    return tokens / max(1e-9, sum(map(sum, seconds)))
