"""Certificate, part (c): what is sampled on the real model, against the base's own law.

For every emitted token the base's law is read again, by one plain pass over prompt and answer. With the tokens in
some order that the past decides,

    U = (mass in front of the token) + v (its own probability),     v uniform in [0, 1),

the randomised probability integral transform (Smith 1985; Brockwell 2007), is uniform whatever the law is, and
independent of everything before: at every position of a step, for an exact decoder. A rule that favours the tokens
in front shows in U. The order is that of probability, where a wrong temperature or cut shows, and for the drafter
near the base that of its leaning too, where drafts that are accepted too easily show. A chi-square over ten bins for
each position, for all of them together, and for each order, with Bonferroni's correction over those of a check,
decides.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.decoding import steps
from specdec.drafters import Proposer, Sampling, Shape
from specdec.evaluation.check import Check, Subject
from specdec.evaluation.plain_law import impossible, plain_law
from specdec.targets import Target

SAMPLINGS = (Sampling(1.0), Sampling(0.8, top_k=20, top_p=0.9))
BINS = 10
FEWEST = 50  # tokens at a position that is tested
LEAST = 0.001  # of the smallest p-value times the number of positions

_SEQUENCES = 16  # read at once
_NUMBERS = 2**24  # of probabilities held at once


@dataclass(frozen=True)
class Way:
    """A form of drafts, and whether the drafter draws them."""

    shape: str
    draws: bool

    def __str__(self) -> str:
        return f"{self.shape}, {'draws' if self.draws else 'choices'}"


WAYS = (Way("chain", False), Way("chain", True), Way("static tree", True), Way("dynamic tree", False))


@dataclass(frozen=True)
class Answer:
    """token_ids of prompt and answer; places[n]: of each of the answer's tokens in its step, -1 for the prompt's."""

    token_ids: list[int]
    places: list[int]


def check_sampling(subject: Subject, tokens: int, ways: tuple[Way, ...] = WAYS) -> Iterator[Check]:
    """One check a way of drafting, on `tokens` tokens or a few more, in equal shares of samplings and drafters."""
    share = -(-tokens // (len(SAMPLINGS) * len(subject.proposers)))
    random = torch.Generator().manual_seed(subject.seed)
    seeds = itertools.count(1_000_000 * subject.seed)
    for way in ways:
        if way.shape not in subject.shapes:
            continue
        shape = subject.shapes[way.shape]
        tested, emitted, outside = [], 0, 0
        for sampling in SAMPLINGS:
            for who, proposer in subject.proposers.items():
                answers = answers_of(subject, proposer, shape, way.draws, sampling, share, seeds)
                orders = {"probability": None} | ({"leaning": subject.lean} if proposer is subject.near else {})
                for order, key in orders.items():
                    found, never = transformed(subject.target, answers, sampling, random, key)
                    told = {"sampling": str(sampling), "with": who, "order": order}
                    tested += [{**told, **one} for one in _chi_squares(found)]
                emitted, outside = emitted + sum(map(len, found.values())), outside + never
        yield _check(f"sampling, {way}", tested, emitted, outside)


def _chi_squares(found: dict[int, Tensor]) -> list[dict[str, Any]]:
    """Of U[n] at each position, and of all positions together, where there are enough."""
    groups: dict[int | str, Tensor] = {**dict(sorted(found.items()))}
    if found:
        groups["all"] = torch.cat(list(found.values()))
    return [{"position": place, **uniformity(u)} for place, u in groups.items() if len(u) >= FEWEST]


def _check(name: str, tested: list[dict[str, Any]], tokens: int, outside: int) -> Check:
    figures = {"tokens": tokens, "positions": tested, "tokens_outside_the_law": outside, "least": LEAST}
    if not tested:
        told = f"not shown: no position of a step has {FEWEST} of the {tokens} tokens (sample more tokens)"
        return Check(name, False, told, figures)
    worst = min(tested, key=lambda one: one["p_value"])
    last = max((one["position"] for one in tested if one["position"] != "all"), default=None)
    corrected = min(1.0, worst["p_value"] * len(tested))
    told = (
        f"{tokens} tokens, {len(tested)} chi-squares, of {_places(last)}: "
        f"least p-value {worst['p_value']:.2g}, corrected {corrected:.2g}"
    )
    passed = corrected >= LEAST and not outside
    if outside:
        told += f"; {outside} tokens that the base never draws"
    if corrected < LEAST:
        where = ", ".join(str(worst[key]) for key in ("with", "order", "sampling"))
        told += f"; below {LEAST} (position {worst['position']}, {where})"
    return Check(name, passed, told, {**figures, "corrected_p_value": corrected})


def _places(last: int | None) -> str:
    """The positions in a step that were tested each; all together always are."""
    if last is None:
        return "all positions of a step together"
    if last == 0:
        return "a step's first token and of all together (those behind it are few: sample more)"
    return f"positions 0 to {last} of a step and of all together"


def answers_of(
    subject: Subject,
    proposer: Proposer,
    shape: Shape | None,
    draws: bool,
    sampling: Sampling,
    tokens: int,
    seeds: Iterator[int],
) -> list[Answer]:
    """Prompt after prompt, each time with the next seed, until `tokens` tokens are there."""
    answers: list[Answer] = []
    made = 0
    for ids in itertools.cycle(subject.prompts):
        taken = list(
            steps(
                subject.target,
                proposer,
                ids,
                subject.max_new_tokens,
                sampling,
                seed=next(seeds),
                tree=shape,
                sample_drafts=draws,
            )
        )
        places = [-1] + [place for step in taken[1:] for place in range(len(step.token_ids))]
        answers.append(Answer([*ids, *(token for step in taken for token in step.token_ids)], places))
        made += len(places)
        if made >= tokens:
            return answers
    raise AssertionError("there are prompts")


@torch.inference_mode()
def transformed(
    target: Target,
    answers: list[Answer],
    sampling: Sampling,
    random: torch.Generator,
    key: Tensor | None = None,
) -> tuple[dict[int, Tensor], int]:
    """(U[n] of the tokens at each position of a step, how many tokens the base never draws: see `impossible`).

    key[V]: tokens are ordered by it, the largest in front; None: by their probability. Positions count from 0; the
    prompt's own token is at none of them.
    """
    found: dict[int, list[float]] = defaultdict(list)
    outside = 0
    for start in range(0, len(answers), _SEQUENCES):
        some = answers[start : start + _SEQUENCES]
        hidden = _states(target, some)
        emitted = torch.tensor([t for a in some for t in a.token_ids[-len(a.places) :]], device=target.device)
        values = []
        rows = max(1, _NUMBERS // target.vocab_size)
        for states, tokens in zip(hidden.split(rows), emitted.split(rows), strict=True):
            logits = target.logits(states)
            law, order = plain_law(logits, sampling)
            if key is not None:
                law = torch.zeros_like(law).scatter(-1, order, law)
                order = key.argsort(descending=True).expand_as(law)
                law = law.gather(-1, order)
            place = (order == tokens[:, None]).int().argmax(-1, keepdim=True)
            own = law.gather(-1, place)[:, 0]
            v = torch.rand(len(own), dtype=torch.float64, generator=random).to(own.device)
            values.append(law.cumsum(-1).gather(-1, place)[:, 0] - (1 - v) * own)
            outside += int(impossible(logits, tokens, sampling).sum())
        flat = torch.cat(values).tolist()
        for place, value in zip([p for a in some for p in a.places], flat, strict=True):
            found[place].append(value)
    found.pop(-1, None)
    return {place: torch.tensor(values, dtype=torch.float64) for place, values in found.items()}, outside


def _states(target: Target, answers: list[Answer]) -> Tensor:
    """[n, H]: the base's state before each token of the answers, in one pass without a cache.

    Rows are filled up at their end, where nobody before looks.
    """
    longest = max(len(a.token_ids) for a in answers)
    ids = [a.token_ids + [0] * (longest - len(a.token_ids)) for a in answers]
    hidden = target.forward(torch.tensor(ids, device=target.device)).hidden
    ends = [len(a.token_ids) - 1 for a in answers]
    return torch.cat(
        [hidden[i, end - len(a.places) : end] for i, (a, end) in enumerate(zip(answers, ends, strict=True))]
    )


def uniformity(values: Tensor) -> dict[str, Any]:
    """{"tokens", "chi_square", "p_value"} of values[n] in [0, 1] that should be uniform."""
    counts = torch.bincount((values * BINS).long().clamp(0, BINS - 1), minlength=BINS).double()
    expected = len(values) / BINS
    statistic = ((counts - expected) ** 2).sum() / expected
    freedom = torch.tensor((BINS - 1) / 2, dtype=torch.float64)
    p_value = torch.special.gammaincc(freedom, statistic / 2)
    return {"tokens": len(values), "chi_square": float(statistic), "p_value": float(p_value)}
