"""Drafts of an EAGLE drafter in shapes that never change, to be compiled: its cache has a fixed size, and what it
reads of the base is filled up to the same number of rows in every step. A chain is the narrowest tree."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from specdec.drafters.interface import DraftState
from specdec.drafters.llama_layer import DraftLayer
from specdec.drafters.sampling import Draw, Drawn, Said, Sampling
from specdec.drafters.trees import Drafts, PlacedTree, Proposal, StaticTree, Tree, chain, copied

if TYPE_CHECKING:
    from specdec.drafters.unrolled import Unrolled


class FixedDraftCache:
    """Keys and values [kv, length, D] of each layer; `held` rows of them are read states. Its memory stays."""

    def __init__(self, drafter: "Unrolled", length: int):
        sizes = drafter.sizes
        like = next(drafter.layers.parameters()).detach()
        shape = (sizes.num_key_value_heads, length, sizes.head_dim)
        self.length = length
        self.keys = [like.new_zeros(shape) for _ in drafter.layers]
        self.values = [like.new_zeros(shape) for _ in drafter.layers]
        for rows in (*self.keys, *self.values):
            torch._dynamo.mark_static_address(rows)
        self.held = 0


def propose_fixed(
    drafter: "Unrolled",
    state: DraftState,
    compiled: Any,
    budget: int,
    tree: Tree | StaticTree | None,
    draw: Draw | None,
) -> Proposal:
    """What `propose` says, by `compiled`, which is `draft`: but where the prompt is read, or `budget` cuts a tree."""
    assert state.fixed is not None
    assert state.hidden is not None
    assert state.token_ids is not None
    form = tree or chain(min(drafter.draft_tokens, state.fixed.step - 1))
    cache = _cache(drafter, state, form)
    hidden, auxiliary, token_ids = state.hidden, state.auxiliary, state.token_ids
    count, width = len(hidden), min(form.depth, form.nodes) + 1
    more = max(0, width - count)
    hidden, token_ids = pad(hidden, (0, 0, 0, more)), pad(token_ids, (0, more))
    auxiliary = None if auxiliary is None else pad(auxiliary, (0, 0, 0, more))
    whole = budget >= form.depth or (tree is None and draw is None)  # a chain's first tokens do not know its end
    depth = form.depth if whole else budget
    placed = form.on(token_ids.device)
    noise = None
    if draw is not None:
        assert isinstance(placed, PlacedTree)
        noise = draw.ahead(placed.asked(depth), drafter.output_weight)
    run = compiled if whole and len(hidden) == width else draft
    start = token_ids.new_full((), cache.held)  # a kernel's arguments: nothing is copied from the host
    last = token_ids.new_full((1,), count - 1)
    found: Drafts = run(
        drafter,
        cache.keys,
        cache.values,
        hidden,
        auxiliary,
        token_ids,
        start,
        last,
        placed,
        depth,
        None if draw is None else draw.sampling,
        noise,
    )
    cache.held += count
    state.forget()
    tokens, parents, laws = copied(found)
    if tree is None:
        return Proposal(tokens[:budget], None, None if laws is None else laws[:budget])
    turns = placed.turns_at(depth) if isinstance(placed, PlacedTree) else None
    return Proposal(tokens, parents, laws, turns)


def _cache(drafter: "Unrolled", state: DraftState, form: Tree | StaticTree) -> FixedDraftCache:
    """The sequence's, or the memory that an earlier one left."""
    assert state.fixed is not None
    if state.cache is None:
        beside = state.fixed.beside
        length = state.fixed.length + form.inner
        held = beside.get(drafter)
        if held is None or held.length < length:
            held = beside[drafter] = FixedDraftCache(drafter, length)
        held.held = 0
        state.cache = held
    cache: FixedDraftCache = state.cache
    return cache


def draft(
    drafter: "Unrolled",
    keys: list[Tensor],
    values: list[Tensor],
    hidden: Tensor,
    auxiliary: Tensor | None,
    token_ids: Tensor,
    start: Tensor,
    last: Tensor,
    tree: Tree | PlacedTree,
    depth: int,
    sampling: Sampling | None,
    noise: Tensor | None,
) -> Drafts:
    """The tree behind row `last` [1] of hidden[W, H], whose rows stand at `start` [] and behind it.

    Rows behind `last` are no context: the drafts' own rows overwrite them, or stand in front of them. sampling and
    noise: of tokens that are drawn (`Draw.ahead`).
    """
    dtype = keys[0].dtype
    device = hidden.device
    room = torch.arange(keys[0].shape[1], device=device)
    draw = None if noise is None or sampling is None else Drawn(sampling, noise)

    def run(states: Tensor, tokens: Tensor, places: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        embeddings = drafter.embed(tokens)
        angles = positions.clamp(max=drafter.rotary.length - 1)  # drafts behind the context's end are not used

        def attend(i: int, layer: DraftLayer, inputs: Tensor) -> Tensor:
            query = drafter.rotary(layer.self_attn.query(inputs), angles)
            key, value = layer.self_attn.key_value(inputs)
            keys[i].index_copy_(1, places, drafter.rotary(key, angles).transpose(0, 1))
            values[i].index_copy_(1, places, value.transpose(0, 1))
            rows = query.transpose(0, 1)[None], keys[i][None], values[i][None]
            found = scaled_dot_product_attention(*rows, attn_mask=mask, enable_gqa=True)
            return found[0].transpose(0, 1).flatten(1)

        return drafter.run_layers(drafter.join(states, embeddings), embeddings, attend)

    states = drafter.first_states(hidden.to(dtype), None if auxiliary is None else auxiliary.to(dtype))
    places = start + torch.arange(len(hidden), device=device)
    output = run(states, token_ids, places, places, room <= places[:, None])
    said, states = drafter.finish(output.index_select(0, last))
    newest = start + last
    seen = (room <= newest)[None]  # of the cache, by each node given last
    level, used = 0, 0

    def extend(tokens: Tensor, parents: Tensor) -> Said:
        """Runs the nodes, each of which sees the context, the nodes above it and itself."""
        nonlocal states, seen, level, used
        level += 1
        above = parents.clamp(min=0)  # the context is the only row of the first level
        places = newest + 1 + used + torch.arange(len(tokens), device=device)
        used += len(tokens)
        seen = seen[above] | (room == places[:, None])
        output = run(states[above], tokens, places, (newest + level).expand(len(tokens)), seen)
        said, states = drafter.finish(output)
        return drafter.say(said, tree.width, draw)

    made = tree.grow(depth, drafter.say(said, tree.width, draw).at(0), extend)
    return made.token_ids, made.parents, made.laws
