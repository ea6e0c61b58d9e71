"""Cross-entropy over a large vocabulary without holding all logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**24  # logits held at once: 64 MiB in float32


def chunked_cross_entropy(
    head: Callable[[Tensor], Tensor], states: Tensor, labels: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies in float32, right[N]: whether the largest logit is the label).

    head: states[n, H] -> logits[n, V]; states[N, H]; labels[N]. Logits live one chunk at a time and are
    recomputed in the backward pass; with a single chunk nothing would be saved, so nothing is recomputed.
    """
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    if len(states) <= size:
        return _cross_entropy(head, states, labels)
    sums, rights = [], []
    for rows, wanted in zip(states.split(size), labels.split(size), strict=True):
        total, right = checkpoint(_cross_entropy, head, rows, wanted, use_reentrant=False)
        sums.append(total)
        rights.append(right)
    return torch.stack(sums).sum(), torch.cat(rights)


def _cross_entropy(head: Callable[[Tensor], Tensor], states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(states).float()
    return cross_entropy(logits, labels, reduction="sum"), logits.detach().argmax(-1) == labels
