"""The chain of an EAGLE drafter in shapes that never change, to be compiled: its cache has a fixed size, and what it
reads of the base is filled up to the same number of rows in every step."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from specdec.drafters.interface import DraftState
from specdec.drafters.llama_layer import DraftLayer

if TYPE_CHECKING:
    from specdec.drafters.unrolled import Unrolled


class FixedDraftCache:
    """Keys and values [kv, length, D] of each layer; `held` rows of them are read states. Its memory stays."""

    def __init__(self, drafter: "Unrolled", length: int):
        sizes = drafter.sizes
        like = next(drafter.layers.parameters()).detach()
        shape = (sizes.num_key_value_heads, length, sizes.head_dim)
        self.keys = [like.new_zeros(shape) for _ in drafter.layers]
        self.values = [like.new_zeros(shape) for _ in drafter.layers]
        for rows in (*self.keys, *self.values):
            torch._dynamo.mark_static_address(rows)
        self.held = 0


def propose_chain(drafter: "Unrolled", state: DraftState, compiled: Any) -> Tensor:
    """tokens[step - 1] behind what `state` observed, of which `step` rows at most are read by `compiled`."""
    assert state.fixed is not None
    assert state.hidden is not None
    assert state.token_ids is not None
    step = state.fixed.step
    hidden, auxiliary, token_ids = state.hidden, state.auxiliary, state.token_ids
    count = len(hidden)
    if state.cache is None:
        beside = state.fixed.beside
        state.cache = beside[drafter] = beside.get(drafter) or FixedDraftCache(drafter, state.fixed.length)
        state.cache.held = 0
    cache: FixedDraftCache = state.cache
    more = max(0, step - count)
    hidden, token_ids = pad(hidden, (0, 0, 0, more)), pad(token_ids, (0, more))
    auxiliary = None if auxiliary is None else pad(auxiliary, (0, 0, 0, more))
    run = compiled if len(hidden) == step else draft_chain  # the prompt's rows are many
    start = token_ids.new_full((), cache.held)  # a kernel's arguments: nothing is copied from the host
    last = token_ids.new_full((1,), count - 1)
    tokens: Tensor = run(drafter, cache.keys, cache.values, hidden, auxiliary, token_ids, start, last, step - 1)
    cache.held += count
    state.forget()
    return tokens


def draft_chain(
    drafter: "Unrolled",
    keys: list[Tensor],
    values: list[Tensor],
    hidden: Tensor,
    auxiliary: Tensor | None,
    token_ids: Tensor,
    start: Tensor,
    last: Tensor,
    count: int,
) -> Tensor:
    """tokens[count] behind row `last` [1] of hidden[W, H], whose rows stand at `start` [] and behind it.

    Rows behind `last` are no context: the drafts' own rows overwrite them, or stand in front of them.
    """
    dtype = keys[0].dtype
    room = torch.arange(keys[0].shape[1], device=hidden.device)

    def run(states: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        embeddings = drafter.embed(tokens)
        mask = room <= places[:, None]
        angles = places.clamp(max=drafter.rotary.length - 1)  # drafts behind the context's end are not used

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
    output = run(states, token_ids, start + torch.arange(len(hidden), device=hidden.device))
    said, states = drafter.finish(output.index_select(0, last))
    drafted = [drafter.best(said)]
    for i in range(1, count):
        said, states = drafter.finish(run(states, drafted[-1], start + last + i))
        drafted.append(drafter.best(said))
    return torch.cat(drafted)
