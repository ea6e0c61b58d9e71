"""Ways to decode, measured on the same prompts, with the figures of each."""

from collections.abc import Callable
from typing import Any

from specdec.evaluation.comparison import compare
from specdec.evaluation.measure import EvaluationPrompt, Measurements, Way, measure
from specdec.evaluation.plan import Plan, plain_name
from specdec.evaluation.summary import Bootstrap, acceptance_pair, summarize
from specdec.targets import Target

WayFigures = dict[str, dict[str, Any]]


def measure_ways(
    target: Target, ways: list[Way], prompts: list[EvaluationPrompt], plan: Plan, say: Callable[[str], None]
) -> tuple[Measurements, WayFigures]:
    """(what was measured, the figures of every way with a drafter: see `summarize`), by the way's name.

    ways: no drafter first, then the main way: greedy ones are compared with it, on the same prompts.
    """
    measured = measure(target, ways, prompts, plan.max_new_tokens, plan.repeats, plan.bootstrap.seed, say)
    return measured, _figures(ways, measured, plan.bootstrap)


def _figures(ways: list[Way], measured: Measurements, bootstrap: Bootstrap) -> WayFigures:
    main = ways[1].name
    figures = {}
    for way in ways:
        if way.drafter is None:
            continue
        ours = measured[way.name]
        found = summarize(way, ours, measured[plain_name(way.sampling.temperature)], bootstrap)
        if way.name != main and way.sampling.greedy:
            pairs = acceptance_pair(ours), acceptance_pair(measured[main])
            found["to_main"] = compare(*pairs, bootstrap.samples, bootstrap.confidence, bootstrap.seed).as_dict()
        figures[way.name] = found
    return figures
