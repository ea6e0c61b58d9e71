"""Measuring a drafter: every prompt decoded with and without it, interleaved, in one process.

Interleaving per prompt (and changing who goes first) lets slow moments of the machine hit both alike. The text is
compared token by token in every pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from specdec.data.prompts import prompt_ids
from specdec.decoding import Step, steps
from specdec.drafters import Drafter
from specdec.errors import DataError
from specdec.targets import Target

WARM_UP_PROMPTS = 3


@dataclass(frozen=True)
class _Timed:
    steps: list[Step]
    seconds: float

    @property
    def token_ids(self) -> list[int]:
        return [token for step in self.steps for token in step.token_ids]


@dataclass
class PromptMeasurement:
    """One prompt. accepted_at[K]: steps that accepted draft position i; times in seconds, one a pass.

    first_difference: index of the first token that differs from plain decoding; None when all are equal.
    draft_accepted: for each emitted token, whether it came from the drafter.
    """

    id: str
    category: str
    prompt_tokens: int
    token_ids: list[int]
    draft_accepted: list[bool]
    steps: int
    accepted_at: list[int]
    first_difference: int | None = None
    seconds_plain: list[float] = field(default_factory=list)
    seconds_drafter: list[float] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return sum(self.accepted_at)

    def add_pass(self, plain: _Timed, drafted: _Timed) -> None:
        self.seconds_plain.append(plain.seconds)
        self.seconds_drafter.append(drafted.seconds)
        if self.first_difference is None:
            self.first_difference = first_difference(plain.token_ids, drafted.token_ids)


@dataclass(frozen=True)
class Measurement:
    """prompts: one entry each. skipped: prompts that do not fit the base's context."""

    prompts: list[PromptMeasurement]
    skipped: int


def measure(
    target: Target,
    drafter: Drafter,
    rows: list[dict[str, Any]],
    max_new_tokens: int,
    repeats: int,
    say: Callable[[str], None],
) -> Measurement:
    """Greedy decoding of each row's messages, plain and with the drafter, `repeats` timed passes.

    rows: `{"id", "category", "messages"}`. Raises DataError when there is no prompt that fits.
    """
    encoded = [(row, prompt_ids(target.tokenizer, row["messages"])) for row in rows]
    fitting = [(row, ids) for row, ids in encoded if len(ids) < target.max_positions]
    if not fitting:
        raise DataError(f"there is no prompt to evaluate: {len(rows)} were given, none fits {target.name}")
    for _, ids in fitting[:WARM_UP_PROMPTS]:
        _both(target, drafter, ids, max_new_tokens, plain_first=True)
    found: list[PromptMeasurement] = []
    told = time.monotonic()
    for number in range(repeats):
        for i, (row, ids) in enumerate(fitting):
            plain, drafted = _both(target, drafter, ids, max_new_tokens, plain_first=(number + i) % 2 == 0)
            if number == 0:
                found.append(_new_entry(row, ids, drafted.steps, drafter.draft_tokens))
            found[i].add_pass(plain, drafted)
            if time.monotonic() - told > 3:
                told = time.monotonic()
                say(f"pass {number + 1} of {repeats}: {i + 1} of {len(fitting)} prompts decoded")
    return Measurement(found, len(rows) - len(fitting))


def _both(
    target: Target, drafter: Drafter, ids: list[int], max_new_tokens: int, plain_first: bool
) -> tuple[_Timed, _Timed]:
    """(plain, with the drafter), in the order asked for."""
    if plain_first:
        plain = _decode(target, None, ids, max_new_tokens)
        return plain, _decode(target, drafter, ids, max_new_tokens)
    drafted = _decode(target, drafter, ids, max_new_tokens)
    return _decode(target, None, ids, max_new_tokens), drafted


def _decode(target: Target, drafter: Drafter | None, ids: list[int], max_new_tokens: int) -> _Timed:
    began = time.perf_counter()
    taken = list(steps(target, drafter, ids, max_new_tokens))  # every step ends with its tokens on the host
    return _Timed(taken, time.perf_counter() - began)


def _new_entry(row: dict[str, Any], ids: list[int], taken: list[Step], draft_tokens: int) -> PromptMeasurement:
    accepted = [step.accepted for step in taken[1:]]  # the first step reads the prompt and drafts nothing
    return PromptMeasurement(
        id=row["id"],
        category=row["category"],
        prompt_tokens=len(ids),
        token_ids=[token for step in taken for token in step.token_ids],
        draft_accepted=[i < step.accepted for step in taken for i in range(len(step.token_ids))],
        steps=len(accepted),
        accepted_at=[sum(a > i for a in accepted) for i in range(draft_tokens)],
    )


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first index at which two token lists differ (a missing token differs); None when they are equal."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
