"""Certificate, parts (b) and (e): greedy answers with drafts, token for token beside plain decoding.

In float32 every token must be equal. In a lower precision a pass over several tokens rounds otherwise than several
passes over one, and of two tokens that are almost tied the other may win: that is a tie when the lead of the one over
the other is within the rounding of the two, as the base itself shows it: its logits when the same tokens are read in
one pass, token by token, and in blocks as verification reads them. Anything else is a failure.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.decoding import Generation, generate
from specdec.drafters import Drafter, Proposer, Shape
from specdec.evaluation.check import Check, Subject, shapes_of
from specdec.evaluation.measure import first_difference
from specdec.targets import Target

_BLOCK = 4  # tokens that verification reads at once, or thereabouts
_PLACES = 32  # at which the rounding is looked at


@dataclass(frozen=True)
class Difference:
    """prompt: its number, from 0. position: the first token that differs. gap: by how much the base's best logit
    there leads over the drafted answer's token; None where one answer ends. rounding: how far the base's logits lie
    apart, there and shortly before, when the same tokens are read in other portions; no less than the distance of
    neighbouring numbers of the data type."""

    prompt: int
    position: int
    gap: float | None
    rounding: float
    tie: bool


def check_greedy(subject: Subject) -> Iterator[Check]:
    """One check a form of drafts, with the drafter and the one near the base."""
    target = subject.target
    plain = plain_answers(target, subject.prompts, subject.max_new_tokens)
    for name, shape in subject.shapes.items():
        figures: dict[str, Any] = {"prompts": len(plain), "tokens": sum(map(len, plain)), "differing": []}
        for who, proposer in subject.proposers.items():
            made = _answers(target, proposer, subject.prompts, subject.max_new_tokens, shape)
            figures["differing"] += [
                {"with": who, "prompt": i, "position": first_difference(one, generation.token_ids)}
                for i, (one, generation) in enumerate(zip(plain, made, strict=True))
                if one != generation.token_ids
            ]
            figures[f"acceptance length, {who}"] = _acceptance_length(made)
        yield Check(f"greedy, {name}", not figures["differing"], _told(figures), figures)


def _told(figures: dict[str, Any]) -> str:
    lengths = [value for name, value in figures.items() if name.startswith("acceptance length")]
    if not figures["differing"]:
        return (
            f"{figures['tokens']} tokens of {figures['prompts']} prompts equal (acceptance length "
            f"{lengths[0]:.2f}, near the base {lengths[1]:.2f})"
        )
    first = figures["differing"][0]
    return (
        f"{len(figures['differing'])} of {2 * figures['prompts']} answers differ from plain decoding, the first "
        f"(prompt {first['prompt']}, {first['with']}) at token {first['position']}"
    )


def plain_answers(target: Target, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    return [generate(target, None, ids, max_new_tokens).token_ids for ids in prompts]


def _answers(
    target: Target, proposer: Proposer, prompts: list[list[int]], max_new_tokens: int, shape: Shape | None
) -> list[Generation]:
    return [generate(target, proposer, ids, max_new_tokens, tree=shape) for ids in prompts]


def _acceptance_length(made: list[Generation]) -> float:
    return 1 + sum(one.accepted for one in made) / max(1, sum(one.steps for one in made))


# ---------------------------------------------------------------- the data type of deployment


def check_deployment(
    target: Target, drafter: Drafter, prompts: list[list[int]], max_new_tokens: int
) -> Iterator[Check]:
    """The same base and drafter, loaded in the data type in which they are deployed."""
    dtype = str(target.dtype).removeprefix("torch.")
    shapes, scope = shapes_of(target)
    plain = plain_answers(target, prompts, max_new_tokens)
    for name, shape in shapes.items():
        made = [one.token_ids for one in _answers(target, drafter, prompts, max_new_tokens, shape)]
        found = [
            _difference(target, i, prompts[i], plain[i], made[i], shape is not None)
            for i in range(len(prompts))
            if plain[i] != made[i]
        ]
        equal = len(prompts) - len(found)
        figures = {
            "scope": scope,
            "prompts": len(prompts),
            "equal": equal,
            "rate": equal / len(prompts),
            "differing": [asdict(one) for one in found],
        }
        passed = all(one.tie for one in found)
        yield Check(f"{dtype}, {name}", passed, _told_of_ties(len(prompts), found), figures)


def _told_of_ties(prompts: int, found: list[Difference]) -> str:
    told = f"{prompts - len(found)} of {prompts} prompts equal"
    lost = [one for one in found if not one.tie]
    if lost:
        worst = lost[0]
        gap = "the one answer ends there" if worst.gap is None else f"{worst.gap:.2g} apart"
        return (
            f"{told}; {len(lost)} differ where nothing is tied, as prompt {worst.prompt} at token {worst.position} "
            f"({gap}, rounding {worst.rounding:.2g})"
        )
    if found:
        gaps = [one.gap for one in found if one.gap is not None]
        return f"{told}, the others but for ties (gaps up to {max(gaps):.2g}, within rounding)"
    return told


@torch.inference_mode()
def _difference(
    target: Target, number: int, prompt: list[int], plain: list[int], made: list[int], tree: bool
) -> Difference:
    position = first_difference(plain, made)
    assert position is not None
    rows = readings(target, prompt, plain[:position], tree)
    best = float(rows[1, -1].max())
    spacing = torch.finfo(target.dtype).eps * abs(best)  # of neighbouring numbers, at most
    rounding = max(spacing, float((rows.max(0).values - rows.min(0).values).max()))
    if position >= min(len(plain), len(made)):
        return Difference(number, position, None, rounding, tie=False)
    gap = best - float(rows[1, -1, made[position]])
    # Each of two tokens may have moved by the rounding, the one up and the other down.
    return Difference(number, position, gap, rounding, tie=gap <= 2 * rounding)


def readings(target: Target, prompt: list[int], answer: list[int], tree: bool) -> Tensor:
    """[3, n, V]: the base's logits behind prompt + answer and at up to 31 places before, read in one pass; as plain
    decoding does it, token by token; and in blocks, as verification does it."""
    whole = torch.tensor([[*prompt, *answer]], device=target.device)
    found = [target.forward(whole).hidden[0]]
    for block in (1, _BLOCK):
        cache = target.new_cache()
        hidden = [target.forward(whole[:, : len(prompt)], cache=cache).hidden[0]]
        for read in whole[:, len(prompt) :].split(block, 1):
            if not read.shape[1]:
                continue
            if tree and block > 1:
                sees = torch.ones(read.shape[1], read.shape[1], dtype=torch.bool, device=target.device).tril()
                hidden.append(target.forward_tree(read, sees, cache).hidden[0])
            else:
                hidden.append(target.forward(read, cache=cache).hidden[0])
        found.append(torch.cat(hidden))
    return target.logits(torch.stack(found)[:, -_PLACES:])
