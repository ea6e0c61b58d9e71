"""The law that a token is drawn from, written down a second time: decoding is measured against this one.

What `Sampling.probabilities` says runs in decoding, and a mistake there would hide itself if it were the measure too.
"""

import torch
from torch import Tensor

from specdec.drafters import Sampling

EDGE = 1e-3  # of logits, and of probability


def plain_law(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """logits[n, V] -> (probabilities[n, V] in float64 in descending order, the tokens[n, V] that they belong to).

    The best top_k tokens and what ties with the last of them; of these, at the temperature, the fewest that hold
    top_p: a token stays while the mass in front of it is less. Greedy: the first of the best.
    """
    ordered, tokens = logits.double().sort(dim=-1, descending=True, stable=True)
    place = torch.arange(logits.shape[-1], device=logits.device)
    if sampling.greedy:
        return (place == 0).double().expand_as(ordered), tokens
    if sampling.top_k:
        last = ordered[..., min(sampling.top_k, ordered.shape[-1]) - 1, None]
        ordered = ordered.masked_fill(ordered < last, float("-inf"))
    law = ((ordered - ordered[..., :1]) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        in_front = torch.cat([torch.zeros_like(law[:, :1]), law.cumsum(-1)[:, :-1]], -1)
        law = law.masked_fill(in_front >= sampling.top_p, 0)
        law = law / law.sum(-1, keepdim=True)
    return law, tokens


def impossible(logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """bool[n]: tokens[n] behind logits[n, V] that are never drawn, not even where the cuts fall a little later.

    Two readings of one context differ by rounding, so a token at the very edge of a cut may be kept by the other one.
    """
    ordered = logits.double().sort(dim=-1, descending=True).values
    own = logits.double().gather(-1, tokens[:, None])
    out = torch.zeros_like(own, dtype=torch.bool)
    if 0 < sampling.top_k < logits.shape[-1]:
        ordered = ordered[:, : sampling.top_k]
        out |= own < ordered[:, -1:] - EDGE
    if sampling.top_p < 1:
        law = (ordered / sampling.temperature).softmax(-1)
        in_front = (law * (ordered > own + EDGE)).sum(-1, keepdim=True)  # tokens that tie may change places
        out |= in_front >= sampling.top_p + EDGE
    return out[:, 0]
