"""Measuring what a step of decoding is made of: passes of the base, and drafting. See `prediction` for its use.

All that is measured is run in turn, round after round, and the median over the rounds counts, so that a slow moment
of the machine is spread over all. A first round warms up and is thrown away.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from transformers import Cache

from specdec.drafters import Drafter, DraftState
from specdec.errors import DataError
from specdec.evaluation.prediction import StepTimes
from specdec.targets import Target, TargetOutput

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BATCH_SIZES = (1, 4, 16)
OBSERVED = 2  # states that a step hands to the drafter: of one accepted draft and of the token behind it
SEED = 0  # of the token ids: what they are changes no time

Key = TypeVar("Key")


@torch.inference_mode()
def measure_step_times(
    target: Target,
    drafter: Drafter,
    context: int,
    longest: int,
    tokens: Sequence[int] = TOKENS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 9,
) -> StepTimes:
    """Seconds of the base's passes over `tokens` at `batch_sizes`, and of drafting chains of 1 to `longest` tokens.

    context: tokens that stand in the cache before each pass. A drafter proposes for one sequence: see StepTimes for
    what is taken to hold at larger batch sizes. 1 belongs to both lists, being what all is compared with.
    Raises DataError when the context is empty or leaves no room, and for an empty or impossible list.
    """
    tokens, batch_sizes = sorted({1, *tokens}), sorted({1, *batch_sizes})
    _check(target, context, longest, tokens, batch_sizes, repeats)
    base = _base_times(target, context, tokens, batch_sizes, repeats)
    return StepTimes(base, _draft_times(target, drafter, context, longest, repeats), context)


def positions_behind(longest: int) -> int:
    """What timing chains of up to `longest` tokens needs behind the context: all that is observed, and a chain."""
    return (OBSERVED + 1) * longest


def _check(
    target: Target, context: int, longest: int, tokens: list[int], batch_sizes: list[int], repeats: int
) -> None:
    if min(context, longest, tokens[0], batch_sizes[0], repeats) < 1:
        raise DataError(
            f"step times: context {context}, chains of {longest}, tokens {tokens}, batch sizes {batch_sizes} and "
            f"repeats {repeats} must all be 1 or more"
        )
    behind = max(tokens[-1], positions_behind(longest))
    if context + behind > target.max_positions:
        raise DataError(
            f"step times: {behind} tokens behind a context of {context} do not fit {target.name}, which takes "
            f"{target.max_positions}: choose a context of {max(0, target.max_positions - behind)} at most"
        )


def _base_times(
    target: Target, context: int, tokens: list[int], batch_sizes: list[int], repeats: int
) -> dict[int, dict[int, float]]:
    """[batch size][tokens]: a pass, the choice of a token behind each included."""
    ids = _token_ids(target, batch_sizes[-1], context + tokens[-1])
    caches = {size: _filled(target, ids[:size, :context]) for size in batch_sizes}
    seconds: dict[tuple[int, int], list[float]] = {(size, count): [] for size in batch_sizes for count in tokens}
    for _ in range(repeats + 1):
        for (size, count), taken in seconds.items():
            behind = ids[:size, context : context + count]
            taken.append(_timed(target, partial(_choose, target, behind, caches[size])))
            target.crop(caches[size], context)
    medians = _medians(seconds)
    return {size: {count: medians[size, count] for count in tokens} for size in batch_sizes}


def _draft_times(target: Target, drafter: Drafter, context: int, longest: int, repeats: int) -> dict[int, float]:
    """[length]: `propose` behind the states of one step, the context having been read before."""
    ids = _token_ids(target, 1, context + OBSERVED * longest + 1)
    read = target.forward(ids[:, :-1], layers=drafter.aux_layers)
    lengths = list(range(1, longest + 1))
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for number in range(repeats + 1):
        state = DraftState()
        _observe(state, ids[0], read, slice(0, context))
        drafter.propose(state, 1)
        # Each proposal leaves the drafter with a few states more: every second round goes the other way.
        for place, length in enumerate(lengths if number % 2 == 0 else reversed(lengths)):
            start = context + OBSERVED * place
            _observe(state, ids[0], read, slice(start, start + OBSERVED))
            seconds[length].append(_timed(target, partial(drafter.propose, state, length)))
    return _medians(seconds)


def _observe(state: DraftState, token_ids: Tensor, read: TargetOutput, rows: slice) -> None:
    auxiliary = None if read.auxiliary is None else read.auxiliary[0, rows]
    state.observe(token_ids[1:][rows], read.hidden[0, rows], auxiliary)


def _choose(target: Target, token_ids: Tensor, cache: Cache) -> Tensor:
    return target.logits(target.forward(token_ids, cache=cache).hidden).argmax(-1)


def _filled(target: Target, token_ids: Tensor) -> Cache:
    cache = target.new_cache()
    target.forward(token_ids, cache=cache)
    return cache


def _token_ids(target: Target, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(target.vocab_size, (rows, columns), generator=generator).to(target.device)


def _timed(target: Target, work: Callable[[], object]) -> float:
    """Seconds until the work is done, on the device too."""
    _wait(target)
    began = time.perf_counter()
    work()
    _wait(target)
    return time.perf_counter() - began


def _wait(target: Target) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)


def _medians(seconds: dict[Key, list[float]]) -> dict[Key, float]:
    """Without the first round."""
    return {key: statistics.median(taken[1:]) for key, taken in seconds.items()}
