"""The usual way to train a drafter, as simple and as fast as it goes: what `benchmarks.training` measures against.

Shuffled conversations padded to the longest, the drafter at every position, whole logits; by autograd.
"""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention, smooth_l1_loss

from benchmarks.training_work import (
    conversations,
    enough,
    fresh_drafter,
    load_base,
    method_settings,
    padded_batch,
)
from specdec.data.packing import Sequence, pack
from specdec.drafters import Drafter, Features, Medusa
from specdec.drafters.unrolled import Unrolled
from specdec.targets import Target
from specdec.training.features import Batch, collate, compute_features


def padded_features(target: Target, batch: Batch, aux_layers: tuple[int, ...] = ()) -> Features:
    """`compute_features` of right-padded conversations: plain causal attention needs no mask."""
    batch = {name: tensor.to(target.device) for name, tensor in batch.items()}
    names = ("token_ids", "loss_mask", "document_ids", "positions")
    with torch.no_grad():
        output = target.forward(batch["token_ids"], layers=aux_layers)
    return Features(*(batch[name] for name in names), output.hidden, output.auxiliary)


def reference_loss(drafter: Drafter, settings: Any, features: Features) -> Tensor:
    """KL at every position, masked afterwards, averaged over the anchors of each draft position."""
    hidden = features.hidden
    outputs: list[Tensor] = []
    if isinstance(drafter, Medusa):
        states = [block(hidden.float()) for block in drafter.blocks]
        weights, scale, decay, share = drafter.output_weights, 1.0, settings.head_decay, 1.0
    else:
        assert isinstance(drafter, Unrolled)
        outputs, states = run_everywhere(drafter, features)
        weights, scale = [drafter.output_weight] * len(states), drafter.logit_scale
        decay, share = settings.unroll_decay, drafter.head_weight()
    q, entropy = base_says(drafter.target, hidden)
    total = torch.zeros((), device=hidden.device)
    for k, (state, weight) in enumerate(zip(states, weights, strict=True)):
        last = hidden.shape[1] - 1 - k
        logits = linear(state[:, :last], weight)
        log_p = (logits if scale == 1.0 else logits * scale).log_softmax(-1, dtype=torch.float32)
        losses = share * (entropy[:, 1 + k :] - (q[:, 1 + k :] * log_p).sum(-1))
        if settings.method == "eagle":
            distance = smooth_l1_loss(outputs[k][:, :last].float(), hidden[:, 1 + k :].float(), reduction="none")
            losses = losses + settings.feature_weight * distance.mean(-1)
        anchors = features.answer_run(2 + k)[:, :last]
        total = total + decay**k * (losses * anchors).sum() / anchors.sum().clamp(min=1)
    return total


@torch.no_grad()
def base_says(target: Target, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """hidden[B, T, H] -> q[B, T, V] of the token behind each, and sum q log q [B, T]."""
    log_q = target.logits(hidden).log_softmax(-1)
    q = log_q.exp()
    return q, (q * log_q).sum(-1)


def run_everywhere(drafter: Unrolled, features: Features) -> tuple[list[Tensor], list[Tensor]]:
    """The layers' outputs, and what the output layer reads of them: [B, T, H] of each draft position."""
    ids, hidden, auxiliary = features.token_ids, features.hidden.float(), features.auxiliary
    states = drafter.first_states(hidden, None if auxiliary is None else auxiliary.float())
    caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in drafter.layers]
    outputs, said = [], []
    for k in range(drafter.unroll_steps):
        places = torch.arange(k, k + ids.shape[1], device=ids.device)
        places = places.clamp(max=drafter.target.max_positions - 1)  # of padding, where the base takes no more
        embeddings = drafter.embed(pad(ids[:, 1 + k :], (0, 1 + k)))
        x = drafter.join(states, embeddings)
        for layer, cache in zip(drafter.layers, caches, strict=True):
            inputs, residual = layer.enter(x, embeddings)
            query = drafter.rotary(layer.self_attn.query(inputs), places)
            key, value = layer.self_attn.key_value(inputs)
            group = query.shape[2] // key.shape[2]
            pair = (drafter.rotary(key, places), value)
            cache.append(tuple(t.repeat_interleave(group, 2).transpose(1, 2) for t in pair))  # type: ignore[arg-type]
            x = layer.leave(residual, attend(query.transpose(1, 2), cache).transpose(1, 2).flatten(2))
        spoken, states = drafter.finish(x)
        outputs.append(x)
        said.append(spoken)
    return outputs, said


def attend(query: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
    """query[B, h, T, D]; cache: keys and values of draft positions 0..k -> [B, h, T, D].

    Position 0 is seen causally; of the others each query sees the keys at its own place, k of them.
    """
    (keys, values), own = cache[0], cache[1:]
    if not own:
        return scaled_dot_product_attention(query, keys, values, is_causal=True)
    length, scale = query.shape[2], query.shape[3] ** -0.5
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ keys.transpose(-1, -2)).masked_fill_(later, float("-inf"))
    further = [(query * key).sum(-1, keepdim=True) for key, _ in own]
    shares = (torch.cat([scores, *further], -1) * scale).softmax(-1, dtype=torch.float32).to(values.dtype)
    found = shares[..., :length] @ values
    for j, (_, value) in enumerate(own):
        found = found + shares[..., length + j, None] * value
    return found


def compare_losses(options: argparse.Namespace) -> None:
    """Exits unless the reference's loss is specdec's, on pieces of a few conversations, with moved weights."""
    target, settings = load_base(options, "float32"), method_settings(options)
    drafter = fresh_drafter(target, settings)
    with torch.no_grad():
        for weight in drafter.parameters():  # some start at zero
            weight.add_(torch.randn_like(weight), alpha=0.8 / target.hidden_size**0.5)
    pieces = list(enough(map(around_the_answer, conversations(options, target)), 64, 200))
    ours = compute_features(target, collate(pack(pieces, 128, 0)), drafter.aux_layers)
    theirs = padded_features(target, padded_batch(pieces), drafter.aux_layers)
    found = []
    for loss in (drafter(ours).loss, reference_loss(drafter, settings, theirs)):
        found.append((loss.item(), torch.autograd.grad(loss, list(drafter.parameters()))))
    (our_loss, our_slopes), (their_loss, their_slopes) = found
    apart = sum(float((a - b).square().sum()) for a, b in zip(our_slopes, their_slopes, strict=True))
    apart = (apart / sum(float(a.square().sum()) for a in our_slopes)) ** 0.5
    print(
        f"loss on {len(pieces)} conversations: specdec {our_loss:.6f}, reference {their_loss:.6f} "
        f"(relative difference {abs(our_loss / their_loss - 1):.1e}, of the gradients {apart:.1e})",
        flush=True,
    )
    if not (abs(our_loss / their_loss - 1) < 1e-4 and apart < 1e-3):
        sys.exit("the reference trains something else")


def around_the_answer(sequence: Sequence) -> Sequence:
    """The end of the first prompt, and the beginning of its answer."""
    first = int(sequence.loss_mask.argmax())
    piece = slice(max(0, first - 5 - first % 20), first + 40)
    return Sequence(sequence.token_ids[piece], sequence.loss_mask[piece])
