"""A drafter inside a real vLLM: acceptance by the server's own counters, and what it gains at each load.

Two servers run at once, one without the drafter and one with it, and take turns on the same prompts, so that a slow
moment of the machine hits both; the one that waits does nothing. Each draft length is a server of its own, since vLLM
takes it at its start.

The speedup at a concurrency is the ratio of request times over the same prompts (per token, where the answers differ
in length; the median of several passes): with so many requests in flight all the time that is the ratio of tokens a
second, and it has a value for each prompt, over which the interval is made. Wall-clock tokens/s of both servers are
told beside it.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from specdec.decoding import steps
from specdec.drafters import Drafter
from specdec.evaluation.engine_client import Answer, Batch, EngineClient
from specdec.evaluation.measure import first_difference
from specdec.evaluation.statistics import Interval
from specdec.evaluation.summary import Bootstrap, conditional_rates
from specdec.progress import Steps
from specdec.serving.counters import Counters
from specdec.serving.launch import START_SECONDS
from specdec.serving.vllm import RunningVllm, Serving, running_vllm
from specdec.targets import Target

CHUNK = 4  # requests for each one in flight, after which the other server takes its turn
WARM_UP = 2  # requests for each one in flight
PAUSE = 1.2  # seconds before a turn: a worker of vLLM spins for a second after its last request, on a core of its own
PERCENTILES = (50, 90, 99)
NAMES = ("plain", "drafter")

Say = Callable[[str], None]


@dataclass(frozen=True)
class EnginePlan:
    """draft_lengths: of chains. concurrencies: requests in flight. arguments: further ones of vLLM."""

    draft_lengths: tuple[int, ...]
    concurrencies: tuple[int, ...]
    max_new_tokens: int
    repeats: int
    bootstrap: Bootstrap
    dtype: str
    max_model_len: int
    arguments: tuple[str, ...] = ()
    start_seconds: float = START_SECONDS


@dataclass(frozen=True)
class Predicted:
    """Our own greedy decoding of the prompts with a chain of one length: accepted[N] and steps[N]."""

    accepted: list[int]
    steps: list[int]
    answers: list[list[int]]


@dataclass
class Load:
    """The prompts at one concurrency: plain[N], drafted[N] answers of every pass; counted: what the
    drafter's server counted over all passes, by the first prompt of those that were sent together; the seconds and
    tokens of both servers."""

    plain: list[list[Answer]]
    drafted: list[list[Answer]]
    counted: dict[int, Counters] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"plain": 0.0, "drafter": 0.0})
    tokens: dict[str, int] = field(default_factory=lambda: {"plain": 0, "drafter": 0})


def benchmark(
    base: tuple[Target, Path],
    drafter: tuple[Drafter, Path],
    prompts: list[list[int]],
    plan: EnginePlan,
    logs: Path,
    say: Say,
) -> dict[str, Any]:
    """Figures of a drafter in vLLM, on prompts of token ids. base, drafter: loaded here, and the folder that vLLM
    loads. logs: the folder of the servers' logs.

    Returns {"draft_lengths": {length: {"acceptance_length", "position_rates", "conditional_rates", "predicted",
    "difference", "loads": {concurrency: ...}}}, "best": {concurrency: draft length or None}, "prompts"}.
    Raises ConfigError (no vLLM) or ServerError (did not start, died), with the log's last lines.
    """
    found: dict[str, Any] = {}
    predictions = {}
    for length in plan.draft_lengths:
        predictions[length] = predict(base[0], drafter[0], prompts, length, plan.max_new_tokens, say)
    plain = Serving(base[1].resolve(), plan.dtype, plan.max_model_len, plan.arguments)
    with running_vllm(plain, logs / "plain.log", say, plan.start_seconds) as without:
        for length in plan.draft_lengths:
            config = speculative_config(drafter[0].method, drafter[1].resolve(), length)
            serving = replace(plain, speculative=config)
            with running_vllm(serving, logs / f"chain-{length}.log", say, plan.start_seconds) as served:
                loads = asyncio.run(_measure(without, served, prompts, plan, length, say))
            found[str(length)] = _figures(loads, predictions[length], length, plan)
    return {"prompts": len(prompts), "draft_lengths": found, "best": best_settings(found)}


def speculative_config(method: str, folder: Path, length: int) -> dict[str, Any]:
    """vLLM's `--speculative-config`; the method is always said, since vLLM also guesses it from the folder's name."""
    return {"method": method, "model": str(folder), "num_speculative_tokens": length}


def predict(
    target: Target, drafter: Drafter, prompts: list[list[int]], length: int, max_new_tokens: int, say: Say
) -> Predicted:
    say(f"decoding {len(prompts)} prompts ourselves, in chains of {length}")
    found = Predicted([], [], [])
    with Steps(say, len(prompts)) as shown:
        for number, prompt in enumerate(prompts):
            taken = list(steps(target, _Chain(drafter, length), prompt, max_new_tokens))
            found.accepted.append(sum(step.accepted for step in taken[1:]))  # the first step reads the prompt
            found.steps.append(len(taken) - 1)
            found.answers.append([token for step in taken for token in step.token_ids])
            shown.show(number + 1, f"{number + 1} of {len(prompts)} prompts decoded")
    return found


class _Chain:
    """A drafter with another draft length."""

    def __init__(self, drafter: Drafter, length: int):
        self.propose, self.aux_layers, self.draft_tokens = drafter.propose, drafter.aux_layers, length


async def _measure(
    without: RunningVllm, served: RunningVllm, prompts: list[list[int]], plan: EnginePlan, length: int, say: Say
) -> dict[int, Load]:
    async with (
        EngineClient(without, plan.max_new_tokens) as plain,
        EngineClient(served, plan.max_new_tokens) as drafted,
    ):
        loads = {}
        for concurrency in plan.concurrencies:
            for client in (plain, drafted):
                await client.run((prompts * WARM_UP * concurrency)[: WARM_UP * concurrency], concurrency)
            loads[concurrency] = await _load(plain, drafted, prompts, concurrency, plan.repeats)
            speed = {name: loads[concurrency].tokens[name] / loads[concurrency].seconds[name] for name in NAMES}
            say(
                f"chain of {length}, {concurrency} at once: {speed['drafter']:.0f} tokens/s, without the drafter "
                f"{speed['plain']:.0f}"
            )
    return loads


async def _load(
    plain: EngineClient, drafted: EngineClient, prompts: list[list[int]], concurrency: int, repeats: int
) -> Load:
    load = Load([[] for _ in prompts], [[] for _ in prompts])
    kept = {"plain": load.plain, "drafter": load.drafted}
    for number in range(repeats):
        for turn, places in enumerate(_chunks(len(prompts), CHUNK * concurrency)):
            order = [("plain", plain), ("drafter", drafted)]
            for name, client in order if (number + turn) % 2 else reversed(order):
                await asyncio.sleep(PAUSE)
                for group in [[i] for i in places] if concurrency == 1 else [list(places)]:
                    batch = await client.run([prompts[i] for i in group], concurrency)
                    _keep(load, name, group[0], batch)
                    for i, answer in zip(group, batch.answers, strict=True):
                        kept[name][i].append(answer)
    return load


def _keep(load: Load, name: str, group: int, batch: Batch) -> None:
    load.seconds[name] += batch.seconds
    load.tokens[name] += sum(len(answer.token_ids) for answer in batch.answers)
    if name == "drafter":
        load.counted[group] = load.counted.get(group, Counters()) + batch.counted


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(count, start + size))


# ---------------------------------------------------------------- figures


def _figures(loads: dict[int, Load], predicted: Predicted, length: int, plan: EnginePlan) -> dict[str, Any]:
    least = loads[min(loads)]
    counted = sum(least.counted.values(), Counters())
    served = _acceptance(least, length, plan.bootstrap)
    ours = list(map(float, predicted.accepted)), list(map(float, predicted.steps))
    expected = plan.bootstrap.ratio(*ours).at_most(length).plus(1)
    rates = (counted.position_rates + [0.0] * length)[:length]
    return {
        "acceptance_length": served.as_dict(),
        "position_rates": rates,
        "conditional_rates": conditional_rates(rates),
        "predicted": expected.as_dict(),
        "difference": served.value / expected.value - 1,
        "same_as_plain": _same([answers[0] for answers in least.drafted], [a[0].token_ids for a in least.plain]),
        "same_as_ours": _same([answers[0] for answers in least.drafted], predicted.answers),
        "loads": {str(concurrency): _at_load(load, length, plan.bootstrap) for concurrency, load in loads.items()},
    }


def _acceptance(load: Load, length: int, bootstrap: Bootstrap) -> Interval:
    """Over what was sent together: with one request in flight a prompt each. Passes are no prompts of their own."""
    accepted, drafts = ([float(getattr(c, name)) for c in load.counted.values()] for name in ("accepted", "drafts"))
    return bootstrap.ratio(accepted, drafts).at_most(length).plus(1)


def _same(answers: list[Answer], others: list[list[int]]) -> dict[str, Any]:
    """How many of the answers are token for token the others, and where the first that is not begins to differ."""
    apart = [first_difference(other, answer.token_ids) for answer, other in zip(answers, others, strict=True)]
    places = [place for place in apart if place is not None]
    return {
        "share": 1 - len(places) / max(1, len(apart)),
        "first_difference": min(places, default=None),
    }


def _at_load(load: Load, length: int, bootstrap: Bootstrap) -> dict[str, Any]:
    tokens = [sum(len(a.token_ids) for a in answers) for answers in load.drafted]
    # In the time of the drafter's tokens: an answer of another length counts at its own time a token.
    plain, drafted = (
        [_per_token(answers) * count for answers, count in zip(side, tokens, strict=True)]
        for side in (load.plain, load.drafted)
    )
    return {
        "speedup": bootstrap.ratio(plain, drafted).as_dict(),
        "tokens_per_second": {name: load.tokens[name] / load.seconds[name] for name in NAMES},
        "acceptance_length": _acceptance(load, length, bootstrap).as_dict(),
        "latency": {"plain": _spread(load.plain, "seconds"), "drafter": _spread(load.drafted, "seconds")},
        "time_to_first_token": {
            "plain": _spread(load.plain, "first_seconds"),
            "drafter": _spread(load.drafted, "first_seconds"),
        },
    }


def _per_token(answers: list[Answer]) -> float:
    """Seconds; of several passes the median: a stall of the machine in one of them is no figure of the drafter's."""
    return float(np.median([answer.seconds / max(1, len(answer.token_ids)) for answer in answers]))


def _spread(answers: list[list[Answer]], name: str) -> dict[str, float]:
    values = [getattr(answer, name) for every in answers for answer in every]
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


def best_settings(draft_lengths: dict[str, Any]) -> dict[str, int | None]:
    """By concurrency: the draft length with the highest speedup; None where none is above 1: no drafter is best."""
    loads = next(iter(draft_lengths.values()))["loads"]
    found: dict[str, int | None] = {}
    for concurrency in loads:
        speeds = {int(d): figures["loads"][concurrency]["speedup"]["value"] for d, figures in draft_lengths.items()}
        best = max(speeds, key=lambda d: speeds[d])
        found[concurrency] = best if speeds[best] > 1 else None
    return found
