"""Speculative generation with one pass of the base a step and exact roll-back of its cache.

    step:   base reads [newest token, draft 1 .. draft N] behind its cache -> chooses N+1 tokens
            the a accepted drafts and one more token are emitted; the cache is cut back to the a+1 true tokens

Drafts are a chain, or a tree whose nodes see the context and the nodes above them only. Without a drafter the very
same loop runs with N = 0: that is the "plain decoding" of every comparison.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from specdec.decoding.verify import Chooser, accepted_path
from specdec.drafters import Drafter, DraftState, Proposal, Tree
from specdec.errors import DataError
from specdec.targets import Target, TargetOutput


@dataclass(frozen=True)
class Step:
    """One pass of the base. The first one reads the prompt: it drafts nothing and emits one token."""

    token_ids: list[int]
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Generation:
    """token_ids: what was generated (the stop token included). accepted[i]: draft tokens accepted in step i."""

    token_ids: list[int]
    accepted_per_step: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Verification steps: passes of the base after the prompt's."""
        return len(self.accepted_per_step)

    @property
    def accepted(self) -> int:
        return sum(self.accepted_per_step)

    @property
    def acceptance_length(self) -> float:
        """1 + accepted / steps; 1 when there was no step. As in vLLM, drafts behind the answer's end count too."""
        return 1 + self.accepted / max(1, self.steps)


def generate(
    target: Target,
    drafter: Drafter | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    tree: Tree | None = None,
) -> Generation:
    """Generates until a stop token of the base or `max_new_tokens`. See `steps`."""
    token_ids: list[int] = []
    accepted: list[int] = []
    for i, step in enumerate(steps(target, drafter, prompt_ids, max_new_tokens, temperature, top_p, seed, tree)):
        token_ids += step.token_ids
        if i > 0:
            accepted.append(step.accepted)
    return Generation(token_ids, accepted)


def steps(
    target: Target,
    drafter: Drafter | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    tree: Tree | None = None,
) -> Iterator[Step]:
    """The generation, step by step, for streaming.

    drafter: None for plain decoding. temperature 0 is greedy. seed: of the sampling; None takes a random one.
    tree: how to grow a draft tree in each step; None: chains of the drafter's `draft_tokens`.
    Raises DataError when the prompt is empty or does not leave room for one token in the base's context, ModelError
    when the base cannot verify trees.
    """
    room = target.max_positions - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise DataError(
            f"the prompt has {len(prompt_ids)} tokens: {target.name} takes 1 to {target.max_positions - 1}"
        )
    chooser = Chooser(temperature, top_p, _generator(target, seed))
    if drafter and tree:
        target.check_trees()
    return _run(target, drafter, prompt_ids, min(max_new_tokens, room), chooser, tree)


@torch.inference_mode()
def _run(
    target: Target,
    drafter: Drafter | None,
    prompt_ids: list[int],
    limit: int,
    chooser: Chooser,
    tree: Tree | None,
) -> Iterator[Step]:
    cache = target.new_cache()
    layers = drafter.aux_layers if drafter else ()
    state = DraftState()
    prompt = torch.tensor([prompt_ids], device=target.device)
    read = target.forward(prompt, cache=cache, layers=layers)
    newest = chooser(target.logits(read.hidden[0, -1:]))
    if drafter:
        auxiliary = None if read.auxiliary is None else read.auxiliary[0]
        state.observe(torch.cat([prompt[0, 1:], newest]), read.hidden[0], auxiliary)
    emitted, done = _until_stop(newest.tolist(), target.stop_ids, limit)
    yield Step(emitted, 0, 0)
    left = limit - len(emitted)
    context = len(prompt_ids)
    while not done and left > 0:
        # The last token of the context never needs a draft behind it.
        draft = _draft(drafter, state, min(left, target.max_positions - context - 1), newest, tree)
        read = _verify(target, cache, newest, draft, layers)
        chosen = chooser(target.logits(read.hidden[0]))
        path = accepted_path(draft, chosen)
        accepted = len(path)
        if draft.parents is None:
            target.crop(cache, context + 1 + accepted)
        else:
            target.keep(cache, context + 1, path)
        places = torch.cat([path.new_zeros(1), path + 1])  # of the rows that were read and stay
        said = chosen[places]
        newest = said[-1:]
        if drafter:
            auxiliary = None if read.auxiliary is None else read.auxiliary[0, places]
            state.observe(said, read.hidden[0, places], auxiliary)
        context += accepted + 1
        emitted, done = _until_stop(said.tolist(), target.stop_ids, left)
        yield Step(emitted, len(draft.token_ids), accepted)
        left -= len(emitted)


def _verify(
    target: Target, cache: DynamicCache, newest: Tensor, draft: Proposal, layers: tuple[int, ...]
) -> TargetOutput:
    """The base's states behind the newest token and behind each draft token, in one pass."""
    token_ids = torch.cat([newest, draft.token_ids])[None]
    if draft.parents is None:
        return target.forward(token_ids, cache=cache, layers=layers)
    sees = pad(draft.ancestors(), (1, 0, 1, 0), value=False)
    sees[:, 0] = True  # everyone sees the newest token
    return target.forward_tree(token_ids, sees, cache, layers)


def _draft(drafter: Drafter | None, state: DraftState, budget: int, newest: Tensor, tree: Tree | None) -> Proposal:
    if drafter is None or budget < 1:
        return Proposal(newest[:0])
    return drafter.propose(state, budget, tree)


def _until_stop(tokens: list[int], stop_ids: frozenset[int], limit: int) -> tuple[list[int], bool]:
    """Cuts behind the first stop token and at the limit; says whether a stop token was met."""
    for i, token in enumerate(tokens[:limit]):
        if token in stop_ids:
            return tokens[: i + 1], True
    return tokens[:limit], False


def _generator(target: Target, seed: int | None) -> torch.Generator | None:
    if seed is None:
        return None
    return torch.Generator(target.device).manual_seed(seed)
