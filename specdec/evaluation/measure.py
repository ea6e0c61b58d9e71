"""Measuring: every prompt decoded in every way that is compared, interleaved, in one process.

The ways take turns on each prompt, and who goes first changes, so slow moments of the machine hit all alike. Greedy
text is compared with plain decoding token by token in every pass.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from specdec.data.prompts import prompt_ids, template_refusal
from specdec.decoding import GREEDY, Step, generate, steps
from specdec.drafters import DraftState, Draw, Proposal, Proposer, Sampling, Shape
from specdec.errors import DataError
from specdec.progress import Steps
from specdec.targets import Target

WARM_UP_PROMPTS = 3


@dataclass(frozen=True)
class Way:
    """One way to decode. drafter: None for the base alone. draft_tokens: of its chain; None: its own."""

    name: str
    drafter: Proposer | None = None
    draft_tokens: int | None = None
    tree: Shape | None = None
    sampling: Sampling = GREEDY
    sample_drafts: bool | None = None

    @property
    def longest(self) -> int:
        """Draft tokens that one step may accept."""
        if self.drafter is None:
            return 0
        return self.tree.depth if self.tree else self.draft_tokens or self.drafter.draft_tokens


@dataclass(frozen=True)
class EvaluationPrompt:
    """contexts: token ids, one list for each turn of the user; later ones hold the base's own greedy answers."""

    id: str
    category: str
    contexts: list[list[int]]


@dataclass
class PromptMeasurement:
    """One prompt, decoded in one way. accepted_at[K]: steps that accepted draft position i. In seconds, one a pass:
    seconds, first_token_seconds (of the first turn), prompt_seconds (until the first token, of all turns),
    draft_seconds.

    first_difference: index of the first token that differs from plain decoding; None when all are equal, or sampled.
    draft_accepted: for each emitted token, whether it came from the drafter. turn_tokens: how many a turn has.
    """

    id: str
    category: str
    prompt_tokens: int
    token_ids: list[int]
    draft_accepted: list[bool]
    steps: int
    drafted: int
    accepted_at: list[int]
    turn_tokens: list[int]
    first_difference: int | None = None
    seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    prompt_seconds: list[float] = field(default_factory=list)
    draft_seconds: list[float] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        return sum(self.accepted_at)

    @property
    def stepping(self) -> float:
        """Seconds of the steps behind the prompts', over all passes."""
        return sum(self.seconds) - sum(self.prompt_seconds)


Measurements = dict[str, list[PromptMeasurement]]


def encode(
    target: Target, rows: list[dict[str, Any]], max_new_tokens: int, say: Callable[[str], None]
) -> tuple[list[EvaluationPrompt], int]:
    """(prompts, how many do not fit the base's context) of rows `{"id", "category", "messages"}`.

    `further_turns` of a row: what the user says next, up to a turn that the chat template refuses; the base's answers
    stand between them. Raises DataError when no prompt is left.
    """
    found: list[EvaluationPrompt] = []
    if any(row.get("further_turns") for row in rows):
        say("the base answers the turns of each conversation")
    refused = 0
    for row in rows:
        messages = list(row["messages"])
        contexts = [prompt_ids(target.tokenizer, messages)]
        for turn in row.get("further_turns", []):
            if len(contexts[-1]) >= target.max_positions:
                break
            answer = generate(target, None, contexts[-1], max_new_tokens).token_ids
            text = target.tokenizer.decode(answer, skip_special_tokens=True)
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": turn}]
            if template_refusal(target.tokenizer, messages) is not None:
                refused += 1
                break
            contexts.append(prompt_ids(target.tokenizer, messages))
        if all(len(context) < target.max_positions for context in contexts):
            found.append(EvaluationPrompt(row["id"], row["category"], contexts))
    if refused:
        say(f"{refused} conversations end in front of a turn that the base's chat template refuses")
    if not found:
        raise DataError(f"there is no prompt to evaluate: {len(rows)} were given, none fits {target.name}")
    return found, len(rows) - len(found)


def measure(
    target: Target,
    ways: list[Way],
    prompts: list[EvaluationPrompt],
    max_new_tokens: int,
    repeats: int,
    seed: int,
    say: Callable[[str], None],
) -> Measurements:
    """By the way's name, one entry a prompt; `repeats` timed passes.

    Greedy ways are compared with the greedy way that has no drafter, which must be there. seed: of the sampling.
    """
    for prompt in prompts[:WARM_UP_PROMPTS]:
        for way in ways:
            _decode(target, way, prompt, max_new_tokens, seed)
    found: Measurements = {way.name: [] for way in ways}
    with Steps(say, repeats * len(prompts)) as shown:
        for number, (i, prompt) in itertools.product(range(repeats), enumerate(prompts)):
            turn = (number + i) % len(ways)
            taken = {w.name: _decode(target, w, prompt, max_new_tokens, seed + i) for w in ways[turn:] + ways[:turn]}
            plain = next((taken[w.name].token_ids for w in ways if w.drafter is None and w.sampling.greedy), [])
            for way in ways:
                timed = taken[way.name]
                if number == 0:
                    found[way.name].append(_new_entry(prompt, timed, way.longest))
                entry = found[way.name][i]
                entry.seconds.append(timed.seconds)
                entry.first_token_seconds.append(timed.first_seconds[0])
                entry.prompt_seconds.append(sum(timed.first_seconds))
                entry.draft_seconds.append(timed.draft_seconds)
                if way.sampling.greedy and entry.first_difference is None:
                    entry.first_difference = first_difference(plain, timed.token_ids)
            shown.show(
                number * len(prompts) + i + 1,
                f"pass {number + 1} of {repeats}: {i + 1} of {len(prompts)} prompts decoded in {len(ways)} ways",
            )
    return found


@dataclass(frozen=True)
class _Timed:
    """turns: the steps of each of the prompt's turns. first_seconds: until the first token of each."""

    turns: list[list[Step]]
    seconds: float
    first_seconds: list[float]
    draft_seconds: float

    @property
    def token_ids(self) -> list[int]:
        return [token for taken in self.turns for step in taken for token in step.token_ids]


class _Clock:
    """A drafter whose time is taken. On a GPU it is waited for: a step waits for its tokens anyway."""

    def __init__(self, drafter: Proposer, draft_tokens: int | None):
        self.drafter = drafter
        self.aux_layers, self.draft_tokens = drafter.aux_layers, draft_tokens or drafter.draft_tokens
        self.seconds = 0.0

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        began = time.perf_counter()
        proposal = self.drafter.propose(state, budget, tree, draw)
        if proposal.token_ids.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        return proposal


def _decode(target: Target, way: Way, prompt: EvaluationPrompt, max_new_tokens: int, seed: int) -> _Timed:
    clock = _Clock(way.drafter, way.draft_tokens) if way.drafter else None
    began = time.perf_counter()
    turns: list[list[Step]] = []
    first: list[float] = []
    for context in prompt.contexts:
        turns.append([])
        asked = time.perf_counter()
        for step in steps(
            target,
            clock,
            context,
            max_new_tokens,
            way.sampling,
            seed=seed,
            tree=way.tree,
            sample_drafts=way.sample_drafts,
        ):  # every step ends with its tokens on the host
            turns[-1].append(step)
            if len(turns[-1]) == 1:
                first.append(time.perf_counter() - asked)
    return _Timed(turns, time.perf_counter() - began, first, clock.seconds if clock else 0.0)


def _new_entry(prompt: EvaluationPrompt, timed: _Timed, longest: int) -> PromptMeasurement:
    taken = [step for turn in timed.turns for step in turn[1:]]  # the first step reads the prompt and drafts nothing
    every = [step for turn in timed.turns for step in turn]
    return PromptMeasurement(
        id=prompt.id,
        category=prompt.category,
        prompt_tokens=len(prompt.contexts[0]),
        token_ids=timed.token_ids,
        draft_accepted=[i < step.accepted for step in every for i in range(len(step.token_ids))],
        steps=len(taken),
        drafted=sum(step.drafted for step in taken),
        accepted_at=[sum(step.accepted > i for step in taken) for i in range(longest)],
        turn_tokens=[sum(len(step.token_ids) for step in turn) for turn in timed.turns],
    )


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first index at which two token lists differ (a missing token differs); None when they are equal."""
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
