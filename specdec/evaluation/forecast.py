"""What a drafter is predicted to bring at every draft length, tree and batch size, beside what was measured.

Rates and step times are measured apart from the timed passes; `prediction` does the arithmetic. What it says of the
settings that were decoded, too, tells how far it can be trusted.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

from specdec.drafters import Drafter, Medusa, StaticTree
from specdec.evaluation.measure import Measurements, PromptMeasurement, Way
from specdec.evaluation.prediction import (
    Setting,
    StepTimes,
    best_settings,
    chain,
    overhead_of,
    predict,
    relative_distance,
    static_tree,
)
from specdec.evaluation.ranks import Rates, search_tree
from specdec.evaluation.step_times import measure_step_times, positions_behind
from specdec.targets import Target

BATCH_SIZES = (1, 4, 16)
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 33)
NODES = (4, 8, 16, 32)  # of the static trees that are predicted


def forecast(
    target: Target,
    drafter: Drafter,
    rates: Rates,
    ways: list[Way],
    statics: dict[str, StaticTree],
    measured: Measurements,
    figures: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """rates[depth, rank]: see `rank_rates`. Chains are predicted as long as the rates are deep. ways: no drafter and
    the main way in front.

    -> step times, every setting at every batch size, the best one for each, and the distance from what was measured;
    None where the base takes too few positions to time a step.
    """
    longest = min(len(rates), drafter.num_heads) if isinstance(drafter, Medusa) else len(rates)
    answers = measured[ways[0].name]
    context = int(median(p.prompt_tokens + len(p.token_ids) // 2 for p in answers))
    tokens = (*TOKENS, 1 + longest)
    room = target.max_positions - max(*tokens, positions_behind(longest))
    if room < 1:
        return None
    context = max(1, min(context, room))
    say(f"timing steps behind {context} tokens")
    times = measure_step_times(target, drafter, context, longest, tokens, BATCH_SIZES)
    plain, main = ways[:2]
    times = StepTimes(times.base, times.draft, times.context, _overhead(times, main, plain, measured))
    table = rates.tolist()
    chains = [chain(length) for length in range(1, longest + 1)]
    every = [*chains, *(static_tree(f"static tree of {n}", search_tree(rates, n).paths) for n in NODES)]
    decoded = [s for way in ways if (s := _setting(way, longest, statics)) and s[1].tokens < max(tokens)]
    return {
        "times": times.as_dict(),
        "predicted": [predict(times, table, setting, size).as_dict() for size in BATCH_SIZES for setting in every],
        "best": _best(times, table, every),
        "best_chain": _best(times, table, chains),
        "measured": {name: _beside(times, table, setting, figures[name]) for name, setting in decoded},
    }


def _best(times: StepTimes, rates: list[list[float]], settings: list[Setting]) -> dict[str, Any]:
    """By batch size."""
    return {str(n): best.as_dict() for n, best in best_settings(times, rates, settings, BATCH_SIZES).items()}


def _overhead(times: StepTimes, main: Way, plain: Way, measured: Measurements) -> float:
    """Of a step with the drafter: what the main way took beyond drafting and the base's pass.

    By its ratio to plain steps, which were measured beside it: steps were timed at another moment of the machine.
    """
    ours, theirs = (_step_seconds(measured[way.name]) for way in (main, plain))
    if not ours or not theirs:
        return 0.0
    return overhead_of(ours / theirs * times.base_seconds(1, 1), times, chain(min(main.longest, max(times.draft))))


def _step_seconds(prompts: list[PromptMeasurement]) -> float:
    """Of one step behind the prompt's; 0 when there was none."""
    steps = sum(p.steps * len(p.seconds) for p in prompts)
    return sum(p.stepping for p in prompts) / steps if steps else 0.0


def _setting(way: Way, longest: int, statics: dict[str, StaticTree]) -> tuple[str, Setting] | None:
    """The way as a setting whose acceptance can be predicted: greedy chains and static trees of the drafter."""
    if not isinstance(way.drafter, Drafter) or not way.sampling.greedy:
        return None
    if way.name in statics:
        return way.name, static_tree(way.name, statics[way.name].paths)
    if way.tree is None and way.longest <= longest:
        return way.name, chain(way.longest)
    return None


def _beside(times: StepTimes, rates: list[list[float]], setting: Setting, figures: dict[str, Any]) -> dict[str, Any]:
    said = predict(times, rates, setting, 1)
    found = {}
    for key, value in (("acceptance_length", said.acceptance_length), ("speedup", said.speedup)):
        seen = figures[key]["value"]
        found[key] = {"predicted": value, "measured": seen, "distance": relative_distance(value, seen)}
    return found
