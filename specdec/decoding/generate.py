"""Speculative generation with one pass of the base a step and exact roll-back of its cache.

    step:   base reads [newest token, draft 1 .. draft N] behind its cache -> chooses N+1 tokens
            the a accepted drafts and one more token are emitted; the cache is cut back to the a+1 true tokens

Drafts are a chain, or a tree whose nodes see the context and the nodes above them only. Without a drafter the very
same loop runs with N = 0: that is the "plain decoding" of every comparison.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from specdec.decoding.stop import Stop
from specdec.decoding.verify import Typical, Verifier
from specdec.drafters import DraftState, Draw, Proposal, Proposer, Sampling, Shape, Tree
from specdec.errors import ConfigError, DataError
from specdec.targets import FixedCache, Target, TargetOutput

GREEDY = Sampling()


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
    drafter: Proposer | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    **choices: Any,
) -> Generation:
    """Generates until a stop token of the base, a stop string or `max_new_tokens`. See `steps`."""
    token_ids: list[int] = []
    accepted: list[int] = []
    for i, step in enumerate(steps(target, drafter, prompt_ids, max_new_tokens, sampling, **choices)):
        token_ids += step.token_ids
        if i > 0:
            accepted.append(step.accepted)
    return Generation(token_ids, accepted)


def steps(
    target: Target,
    drafter: Proposer | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    seed: int | None = None,
    tree: Shape | None = None,
    sample_drafts: bool | None = None,
    typical: Typical | None = None,
    stop: Stop | None = None,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """The generation, step by step, for streaming.

    drafter: None for plain decoding. seed: of the sampling; None takes a random one. tree: the form of a draft
    tree; None: chains of the drafter's `draft_tokens`. sample_drafts: whether the drafter draws its tokens, as the
    base does, instead of proposing the most probable ones (the output has the same law, and more is accepted); None:
    wherever the base samples and the tree is no dynamic one. typical: the lossy rule of that name.
    stop: ends the generation early; None: behind a stop token of the base. cache: an empty one of
    `target.new_cache()`, for those who look at it afterwards: it holds the context but for its last token or two. Or
    one of `target.fixed_cache()`, whose passes have the same shapes in every step and can be compiled.
    Raises DataError when the prompt is empty, has tokens that the base does not know, or does not leave room for one
    token in the base's context, ConfigError when choices exclude each other, ModelError when the base cannot verify
    trees.
    """
    room = target.max_positions - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise DataError(
            f"the prompt has {len(prompt_ids)} tokens: {target.name} takes 1 to {target.max_positions - 1}"
        )
    known = target.embedding_weight.shape[0]
    if unknown := [token for token in prompt_ids if not 0 <= token < known]:
        raise DataError(f"the prompt has the token {unknown[0]}: {target.name} knows 0 to {known - 1}")
    if sample_drafts and isinstance(tree, Tree):
        raise ConfigError("sampled drafts need a chain or a static tree: a dynamic one keeps the likely draws only")
    if sample_drafts and typical:
        raise ConfigError("typical acceptance is a rule for most probable drafts: leave sample_drafts out")
    if drafter and tree:
        target.check_trees()
    generator = _generator(target, seed)
    if sample_drafts is None:
        sample_drafts = not (isinstance(tree, Tree) or typical)
    draw = Draw(sampling, generator) if sample_drafts and not sampling.greedy else None
    verifier = Verifier(sampling, generator, typical)
    limit = min(max_new_tokens, room)
    if cache is not None:
        _check_empty(cache)
    if isinstance(cache, FixedCache):
        _check_room(cache, len(prompt_ids) + limit, _widest(drafter, tree))
    stop = stop or Stop(target.stop_ids)
    if cache is None:  # an empty one is falsy
        cache = target.new_cache()
    else:
        target.lay_out()
    return _run(target, drafter, prompt_ids, limit, verifier, tree, draw, stop, cache)


def _widest(drafter: Proposer | None, tree: Shape | None) -> int:
    """Draft tokens that one pass may verify."""
    if drafter is None:
        return 0
    return tree.nodes if tree else drafter.draft_tokens


def _check_empty(cache: Cache) -> None:
    if cache.get_seq_length():
        raise ConfigError(f"the cache holds {cache.get_seq_length()} positions already: reset it, or take a new one")


def _check_room(cache: FixedCache, tokens: int, drafts: int) -> None:
    if tokens > cache.length - cache.step:
        raise ConfigError(
            f"prompt and answer may take {tokens} tokens, and the fixed cache has room for "
            f"{cache.length - cache.step}: make a longer one"
        )
    if drafts >= cache.step:
        raise ConfigError(
            f"a pass reads {drafts + 1} tokens ({drafts} drafts), and the fixed cache takes {cache.step}: make it "
            f"with step={drafts + 1}"
        )


@torch.inference_mode()
def _run(
    target: Target,
    drafter: Proposer | None,
    prompt_ids: list[int],
    limit: int,
    verifier: Verifier,
    tree: Shape | None,
    draw: Draw | None,
    stop: Stop,
    cache: Cache,
) -> Iterator[Step]:
    _check_empty(cache)  # again: a generator made from the same one may have begun since
    layers = drafter.aux_layers if drafter else ()
    state = DraftState(start=prompt_ids[0], fixed=cache if isinstance(cache, FixedCache) else None)
    prompt = torch.tensor([prompt_ids], device=target.device)
    read = target.forward(prompt, cache=cache, layers=layers)
    newest = verifier.choose(target.logits(read.hidden[0, -1:]))
    if drafter:
        auxiliary = None if read.auxiliary is None else read.auxiliary[0]
        state.observe(torch.cat([prompt[0, 1:], newest]), read.hidden[0], auxiliary)
    emitted, done = stop.cut([], newest.tolist(), limit)
    yield Step(emitted, 0, 0)
    made, context = [*emitted], len(prompt_ids)
    while not done and len(made) < limit:
        # The last token of the context never needs a draft behind it.
        budget = min(limit - len(made), target.max_positions - context - 1)
        if drafter and tree is None:
            budget = min(budget, drafter.draft_tokens)
        draft = drafter.propose(state, budget, tree, draw) if drafter and budget > 0 else Proposal(newest[:0])
        read = _verify(target, cache, newest, draft, layers)
        verdict = verifier(draft, target.logits(read.hidden[0]))
        accepted = len(verdict.places)
        if draft.parents is None:
            target.crop(cache, context + 1 + accepted)
        else:
            target.keep(cache, context + 1, _on(target.device, verdict.places))
        token_ids = _on(target.device, verdict.token_ids)
        newest = token_ids[-1:]
        if drafter:
            rows = _on(target.device, [0, *(place + 1 for place in verdict.places)])  # that stay
            auxiliary = None if read.auxiliary is None else read.auxiliary[0].index_select(0, rows)
            state.observe(token_ids, read.hidden[0].index_select(0, rows), auxiliary)
        context += accepted + 1
        emitted, done = stop.cut(made, verdict.token_ids, limit - len(made))
        yield Step(emitted, len(draft.token_ids), accepted)
        made += emitted


def _verify(target: Target, cache: Cache, newest: Tensor, draft: Proposal, layers: tuple[int, ...]) -> TargetOutput:
    """The base's states behind the newest token and behind each draft token, in one pass."""
    token_ids = torch.cat([newest, draft.token_ids])[None]
    if draft.parents is None:
        return target.forward(token_ids, cache=cache, layers=layers)
    sees = pad(draft.ancestors(), (1, 0, 1, 0), value=False)
    sees[:, 0] = True  # everyone sees the newest token
    return target.forward_tree(token_ids, sees, cache, layers)


def _on(device: torch.device, values: list[int]) -> Tensor:
    """values[n] on the device, which is not waited for, as it would be for a copy of pageable memory."""
    held = torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)


def _generator(target: Target, seed: int | None) -> torch.Generator | None:
    if seed is None:
        return None
    return torch.Generator(target.device).manual_seed(seed)
