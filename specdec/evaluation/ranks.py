"""How often the base's next token is the drafter's first, second, ... choice; the static tree that follows from it.

The rates are Medusa's "position accuracies" (Cai et al. 2024, arXiv:2401.10774, section 2.3.3), for any drafter that
grows trees: of the anchors that decoding meets, with the path above being what the base said.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specdec.decoding import generate
from specdec.drafters import Proposal, Proposer, StaticTree
from specdec.drafters.sampling import Said
from specdec.drafters.trees import ROOT, Extend
from specdec.progress import Steps
from specdec.targets import Target

Rates = NDArray[np.float64]


@dataclass
class Following:
    """A form of tree that follows the base's known answer and notes at which rank it stood; it proposes what a chain
    would get right, so that the next step starts where it would with a chain."""

    answer: list[int]
    depth: int
    width: int
    hits: Rates = field(init=False)
    asked: Rates = field(init=False)
    place: int = 1  # of the answer's token that comes next: the first one is the prompt's own

    def __post_init__(self) -> None:
        self.hits, self.asked = np.zeros((self.depth, self.width)), np.zeros(self.depth)

    @property
    def nodes(self) -> int:
        return self.depth

    def grow(self, depth: int, first: Said, extend: Extend) -> Proposal:
        tokens, parent, right = first.tokens, ROOT, 0
        coming = self.answer[self.place : self.place + min(depth, self.depth)]
        for level, token in enumerate(coming):
            self.asked[level] += 1
            ranks = (tokens == token).nonzero().flatten().tolist()
            if not ranks:
                break
            self.hits[level, ranks[0]] += 1
            right += right == level and ranks[0] == 0
            if level + 1 < len(coming):
                tokens = extend(tokens.new_tensor([token]), tokens.new_tensor([parent])).tokens[0]
                parent = 0
        self.place += right + 1
        return Proposal(first.tokens.new_tensor(coming[:right]))


def rank_rates(
    target: Target,
    drafter: Proposer,
    prompts: list[list[int]],
    max_new_tokens: int,
    depth: int,
    width: int,
    say: Callable[[str], None],
) -> Rates:
    """[depth, width]: the chance that the base's token is the drafter's rank-th choice at this depth, given that the
    path above was right. prompts: token ids; the base answers them greedily."""
    hits, asked = np.zeros((depth, width)), np.zeros(depth)
    say(f"counting the drafter's ranks on {len(prompts)} prompts")
    with Steps(say, len(prompts)) as shown:
        for number, prompt in enumerate(prompts):
            answer = generate(target, None, prompt, max_new_tokens).token_ids
            following = Following(answer, depth, width)
            generate(target, drafter, prompt, max_new_tokens, tree=following)
            hits += following.hits
            asked += following.asked
            shown.show(number + 1, f"ranks counted on {number + 1} of {len(prompts)} prompts")
    return np.divide(hits, asked[:, None], out=np.zeros_like(hits), where=asked[:, None] > 0)


def search_tree(rates: Rates, nodes: int) -> StaticTree:
    """The static tree of `nodes` nodes from which most tokens are accepted, rates[depth, rank] being what they are.

    A node is accepted with the product of the rates on its path. That is never more than its parent's, so the best
    nodes, taken one after the other, are a tree. Fewer than `nodes` where the others are never right.
    """
    depth, width = rates.shape
    waiting: list[tuple[float, tuple[int, ...]]] = [(-float(rates[0, rank]), (rank,)) for rank in range(width)]
    heapq.heapify(waiting)
    chosen: list[tuple[int, ...]] = []
    while waiting and len(chosen) < nodes:
        chance, path = heapq.heappop(waiting)
        if chance == 0:
            break
        chosen.append(path)
        if len(path) < depth:
            for rank in range(width):
                heapq.heappush(waiting, (chance * float(rates[len(path), rank]), (*path, rank)))
    return StaticTree.of(chosen or [(0,)])
