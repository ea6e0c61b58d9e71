"""Certificate, part (d): after refused drafts the base's cache holds what a fresh pass over the same tokens leaves.

Wrong rows there need not show in the next tokens, and are still a wrong context for those behind them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from specdec.decoding import steps
from specdec.drafters import Proposer, Shape
from specdec.evaluation.check import Check, Subject
from specdec.targets import Target

TOLERANCE = 1e-4  # of a layer's largest number, in float32


@dataclass
class _Seen:
    """partly: steps in which some drafts were accepted and others not. length: the first wrong one."""

    partly: int = 0
    refused: int = 0
    largest: float = 0.0
    length: str | None = None


def check_cache(subject: Subject) -> Iterator[Check]:
    """One check a form of drafts. Not passed where no draft was partly accepted: then nothing is shown."""
    for name, shape in subject.shapes.items():
        seen = _Seen()
        for proposer in subject.proposers.values():
            for ids in subject.prompts:
                _decode(subject.target, proposer, ids, subject.max_new_tokens, shape, seen)
        figures: dict[str, Any] = {
            "partly_accepted_steps": seen.partly,
            "refused_steps": seen.refused,
            "largest_difference": seen.largest,
            "limit": TOLERANCE,
        }
        passed = seen.partly > 0 and seen.length is None and seen.largest <= TOLERANCE
        yield Check(f"cache, {name}", passed, _told(seen), figures)


def _told(seen: _Seen) -> str:
    if seen.length:
        return seen.length
    if not seen.partly:
        return "not shown: no step accepted one draft and refused another (give more or other prompts)"
    told = (
        f"{seen.largest:.1e} of a layer's scale from a fresh pass, after {seen.partly} partly and {seen.refused} "
        "wholly refused drafts"
    )
    return told if seen.largest <= TOLERANCE else f"{told}; at most {TOLERANCE:.0e} is rounding"


@torch.inference_mode()
def _decode(
    target: Target, proposer: Proposer, ids: list[int], max_new_tokens: int, shape: Shape | None, seen: _Seen
) -> None:
    cache = target.new_cache()
    taken = list(steps(target, proposer, ids, max_new_tokens, tree=shape, cache=cache))
    for step in taken[1:]:
        seen.partly += 0 < step.accepted < step.drafted
        seen.refused += 0 == step.accepted < step.drafted
    wanted = len(ids) + sum(step.accepted + 1 for step in taken[1:])
    found = cache.get_seq_length()
    if found != wanted:
        seen.length = seen.length or f"the cache holds {found} tokens, and {wanted} were read and accepted"
        return
    # What was accepted behind the answer's end is in the cache, and is not told.
    context = [*ids, *(token for step in taken for token in step.token_ids)][:wanted]
    apart = cache_difference(target, cache, context)
    if not apart <= seen.largest:  # NaN too
        seen.largest = apart


def cache_difference(target: Target, cache: Cache, context: list[int]) -> float:
    """The largest difference of keys or values from those of one pass over the tokens, to their layer's largest."""
    fresh = target.new_cache()
    target.forward(torch.tensor([context], device=target.device), cache=fresh)
    found_at = []
    for layer, wanted in zip(cache.layers, fresh.layers, strict=True):
        for found, right in ((layer.keys, wanted.keys), (layer.values, wanted.values)):
            apart = (found[:, :, : len(context)] - right).abs().max()
            found_at.append(apart / right.abs().max().clamp(min=1e-30))
    return float(torch.stack(found_at).max())
