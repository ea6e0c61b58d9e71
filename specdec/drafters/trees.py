"""Draft trees: several continuations of one context, verified in one pass of the base.

A tree is grown from the drafter's own confidence (EAGLE-2, Li et al. 2024, arXiv:2406.16858): in every level the
`width` most probable nodes get their `width` most probable children, probabilities multiplied along the path; of all
nodes, the `nodes` most probable are verified. A node is never more probable than its parent, so they are a tree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.errors import ConfigError

ROOT = -1  # the parent of the first draft tokens: the newest token of the context

# What a drafter says behind each of n nodes: (log p[n, w], tokens[n, w]), the w most probable tokens, best first.
Said = tuple[Tensor, Tensor]
# (tokens[n], parents[n]) of a level, parents as places in the level that was given before (ROOT: the context).
Extend = Callable[[Tensor, Tensor], Said]


@dataclass(frozen=True)
class Tree:
    """How a tree is grown. depth: draft tokens on the longest path. width: children a node, and nodes a level that
    get children. nodes: how many are verified."""

    depth: int
    width: int
    nodes: int

    def __post_init__(self) -> None:
        for name in ("depth", "width", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a tree is {getattr(self, name)}, and must be 1 or more")


def parse_tree(text: str) -> Tree:
    """ "5,4,20" -> Tree(5, 4, 20). Raises ConfigError for anything else."""
    try:
        depth, width, nodes = map(int, text.split(","))
        return Tree(depth, width, nodes)
    except ValueError as error:
        raise ConfigError(f"tree {text!r}: write DEPTH,WIDTH,NODES, as 5,4,20 ({error})") from None


@dataclass(frozen=True)
class Proposal:
    """Draft tokens[N], each the drafter's own choice and no sample; a node comes behind its parent.

    parents[N]: the place of each one's parent, or ROOT; None: a chain. Children of one node differ.
    """

    token_ids: Tensor
    parents: Tensor | None = None

    def ancestors(self) -> Tensor:
        """bool[N, N]: row i marks node i and every node above it."""
        count, device = len(self.token_ids), self.token_ids.device
        found = torch.eye(count, device=device)
        if self.parents is None:
            return torch.ones_like(found).tril().bool()
        above = (self.parents[:, None] == torch.arange(count, device=device)).float()
        for _ in range(count.bit_length()):  # twice as far up each time
            found = found + found @ above
            above = above @ above
        return found > 0


def most_probable(logits: Tensor, width: int) -> Said:
    """(log p[..., w], tokens[..., w]) of logits[..., V]."""
    scores, tokens = logits.float().log_softmax(-1).topk(min(width, logits.shape[-1]))
    return scores.clamp(max=0), tokens


def grow(tree: Tree, depth: int, first: Said, extend: Extend) -> Proposal:
    """The proposal of a drafter that says `first` behind the context, and then what follows each level.

    first: (log p[w], tokens[w]). depth: of this tree at most, where less room is left.
    """
    scores, tokens = first
    parents = places = torch.full_like(tokens, ROOT)  # in the whole pool; in the level that was given before
    pool = [(scores, tokens, parents)]
    start = 0  # of the newest level in the pool
    for _ in range(1, min(depth, tree.depth)):
        chosen = scores.topk(min(tree.width, len(scores))).indices.sort().values
        said, following = extend(tokens[chosen], places[chosen])
        width = following.shape[1]
        places = torch.arange(len(chosen), device=chosen.device).repeat_interleave(width)
        parents = (start + chosen)[places]
        start += len(scores)
        scores, tokens = (scores[chosen, None] + said).flatten(), following.flatten()
        pool.append((scores, tokens, parents))
    every = [torch.cat(parts) for parts in zip(*pool, strict=True)]
    return _best(every[0], every[1], every[2], min(tree.nodes, len(every[0])))


def _best(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> Proposal:
    """The most probable nodes; of equals the earlier one, which may be the other's parent."""
    order = torch.sort(scores, descending=True, stable=True).indices
    kept = order[:count].sort().values
    new_places = torch.full((len(scores) + 1,), ROOT, device=scores.device)
    new_places[kept] = torch.arange(count, device=scores.device)
    return Proposal(tokens[kept], new_places[parents[kept]])
