"""Draft trees: several continuations of one context, verified in one pass of the base.

A dynamic tree is grown from the drafter's own confidence (EAGLE-2, Li et al. 2024, arXiv:2406.16858): in every level
the `width` most probable nodes get their `width` most probable children, probabilities multiplied along the path; of
all nodes, the `nodes` most probable are verified. A node is never more probable than its parent, so they are a tree.

A static tree always has the same form (Medusa, Cai et al. 2024, arXiv:2401.10774): a node is the path of ranks to it,
(1, 0) being the drafter's best token behind its second best one. A form that does not look at what was drawn is what
sampled proposals need.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from specdec.drafters.sampling import Said
from specdec.errors import ConfigError

ROOT = -1  # the parent of the first draft tokens: the newest token of the context

# What a Proposal is made of, for compiled functions: token_ids[N], parents[N], laws[N, V].
Drafts = tuple[Tensor, Tensor | None, Tensor | None]

# (tokens[n], parents[n]) of a level, parents as places in the level that was given before (ROOT: the context).
Extend = Callable[[Tensor, Tensor], Said]


def copied(drafts: Drafts) -> Drafts:
    """Out of the memory of a captured function, which its next call uses again."""
    tokens, parents, laws = drafts
    return tokens.clone(), None if parents is None else parents.clone(), None if laws is None else laws.clone()


@dataclass(frozen=True)
class Proposal:
    """Draft tokens[N]; a node comes behind its parent, and children of one node in the order of their draws.

    parents[N]: the place of each one's parent, or ROOT; None: a chain. Children of one node differ.
    laws[N, V]: what each token was drawn from, given its path and that those in front of it were not taken; None:
    the tokens are the drafter's own choice and no draws. turns[k]: places of the tokens that are some node's k-th
    child, for draws; None: not known beforehand.
    """

    token_ids: Tensor
    parents: Tensor | None = None
    laws: Tensor | None = None
    turns: tuple[Tensor, ...] | None = None

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


class Shape(Protocol):
    """A form of tree that drafters grow: `depth` levels at most, `width` children a node at most."""

    @property
    def depth(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def nodes(self) -> int:
        """That are verified, at most."""

    def grow(self, depth: int, first: Said, extend: Extend) -> Proposal:
        """The proposal of a drafter that says `first` (of one node) behind the context, and then what follows each
        level. depth: of this tree at most, where less room is left."""


@dataclass(frozen=True)
class Tree:
    """How a dynamic tree is grown. depth: draft tokens on the longest path. width: children a node, and nodes a level
    that get children. nodes: how many are verified."""

    depth: int
    width: int
    nodes: int

    def __post_init__(self) -> None:
        for name in ("depth", "width", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a tree is {getattr(self, name)}, and must be 1 or more")

    def __str__(self) -> str:
        return f"{self.depth},{self.width},{self.nodes}"

    @property
    def inner(self) -> int:
        """Nodes that get children, at most."""
        return (self.depth - 1) * self.width

    def on(self, _device: torch.device) -> "Tree":
        """Nothing of its form has to be there."""
        return self

    def grow(self, depth: int, first: Said, extend: Extend) -> Proposal:
        assert first.laws is None, "which nodes stay depends on their probability: draws would not be draws any more"
        scores, tokens = first.scores, first.tokens
        parents = places = torch.full_like(tokens, ROOT)  # in the whole pool; in the level that was given before
        pool = [(scores, tokens, parents)]
        start = 0  # of the newest level in the pool
        for _ in range(1, min(depth, self.depth)):
            chosen = scores.topk(min(self.width, len(scores))).indices.sort().values
            said = extend(tokens[chosen], places[chosen])
            width = said.tokens.shape[1]
            places = torch.arange(len(chosen), device=chosen.device).repeat_interleave(width)
            parents = (start + chosen)[places]
            start += len(scores)
            scores, tokens = (scores[chosen, None] + said.scores).flatten(), said.tokens.flatten()
            pool.append((scores, tokens, parents))
        every = [torch.cat(parts) for parts in zip(*pool, strict=True)]
        return _best(every[0], every[1], every[2], min(self.nodes, len(every[0])))


def parse_tree(text: str) -> Tree:
    """ "5,4,20" -> Tree(5, 4, 20). Raises ConfigError for anything else."""
    form = f"tree {text!r}: write DEPTH,WIDTH,NODES, as 5,4,20"
    try:
        depth, width, nodes = map(int, text.split(","))
    except ValueError:  # its words are Python's
        raise ConfigError(form) from None
    try:
        return Tree(depth, width, nodes)
    except ValueError as error:
        raise ConfigError(f"{form} ({error})") from None


@dataclass(frozen=True)
class StaticTree:
    """paths: every node as the ranks on the way to it. Raises ConfigError where a node's parent is missing."""

    paths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        known = set(self.paths)
        if not known or len(known) < len(self.paths):
            raise ConfigError("a static tree needs one path or more, each of them once")
        for path in self.paths:
            if not path or min(path) < 0 or (len(path) > 1 and path[:-1] not in known):
                raise ConfigError(f"static tree: {list(path)} is no path behind another one of the tree")

    @classmethod
    def of(cls, paths: Iterable[Iterable[int]]) -> "StaticTree":
        """Paths in any order, shorter ones first afterwards."""
        return cls(tuple(sorted((tuple(path) for path in paths), key=lambda path: (len(path), path))))

    @property
    def depth(self) -> int:
        return max(map(len, self.paths))

    @property
    def width(self) -> int:
        return 1 + max(map(max, self.paths))

    @property
    def nodes(self) -> int:
        return len(self.paths)

    @property
    def inner(self) -> int:
        """Nodes that have children."""
        return len({path[:-1] for path in self.paths if len(path) > 1})

    def on(self, device: torch.device) -> "PlacedTree":
        """With its form on the device, to which nothing is copied when it grows."""
        return _placed(self.paths, self.width, device)

    def grow(self, depth: int, first: Said, extend: Extend) -> Proposal:
        return self.on(first.tokens.device).grow(depth, first, extend)


@dataclass(frozen=True)
class _Level:
    """The nodes of one level. parents[n]: place among those of the level above that have children; ranks[n]: which
    of the parent's children; above[n]: the parent's place in the whole tree; asked: places of nodes with children."""

    parents: Tensor
    ranks: Tensor
    above: Tensor
    asked: Tensor


@dataclass(frozen=True)
class PlacedTree:
    """A static tree on one device."""

    levels: list[_Level]
    width: int
    turns: list[tuple[Tensor, ...]]  # of a Proposal, by the depth that is grown less 1

    def asked(self, depth: int) -> list[int]:
        """Of how many nodes a drafter is asked what follows, call by call."""
        return [1, *(len(level.asked) for level in self.levels[: depth - 1])]

    def grow(self, depth: int, first: Said, extend: Extend) -> Proposal:
        if self.width > first.tokens.shape[-1]:
            raise ConfigError(
                f"static tree: a node has a child of rank {self.width - 1}, and the drafter knows "
                f"{first.tokens.shape[-1]} tokens"
            )
        said = Said(first.scores[None], first.tokens[None], None if first.laws is None else first.laws[None])
        tokens, parents, laws = [], [], []
        for number, level in enumerate(self.levels[:depth]):
            place = level.parents.clamp(min=0)
            tokens.append(said.tokens[place, level.ranks])
            parents.append(level.above)
            if said.laws is not None:
                laws.append(said.laws[place, level.ranks])
            if number + 1 < min(depth, len(self.levels)):
                said = extend(tokens[-1][level.asked], level.parents[level.asked])
        return Proposal(
            torch.cat(tokens), torch.cat(parents), torch.cat(laws) if laws else None, self.turns_at(depth)
        )

    def turns_at(self, depth: int) -> tuple[Tensor, ...]:
        return self.turns[min(depth, len(self.turns)) - 1]


@cache
def chain(length: int) -> StaticTree:
    """The tree of one path."""
    return StaticTree.of([(0,) * depth for depth in range(1, length + 1)])


@cache
@torch.inference_mode(False)
def _placed(paths: tuple[tuple[int, ...], ...], width: int, device: torch.device) -> PlacedTree:
    levels: list[_Level] = []
    turns: list[tuple[Tensor, ...]] = []
    children: dict[int, list[int]] = {}  # places of all first children, all second ones, ...
    born: Counter[tuple[int, ...]] = Counter()  # children that a node has so far
    asked: dict[tuple[int, ...], int] = {}  # nodes of the level above that have children
    starts: dict[tuple[int, ...], int] = {}  # place of each node in the whole tree
    with_children = {path[:-1] for path in paths}
    for length in range(1, max(map(len, paths)) + 1):
        here = sorted(path for path in paths if len(path) == length)
        starts |= {path: len(starts) + i for i, path in enumerate(here)}
        places = [i for i, path in enumerate(here) if path in with_children]
        levels.append(
            _Level(
                parents=torch.tensor([asked.get(path[:-1], ROOT) for path in here], device=device),
                ranks=torch.tensor([path[-1] for path in here], device=device),
                above=torch.tensor([starts.get(path[:-1], ROOT) for path in here], device=device),
                asked=torch.tensor(places, dtype=torch.long, device=device),
            )
        )
        asked = {here[place]: i for i, place in enumerate(places)}
        for path in here:
            children.setdefault(born[path[:-1]], []).append(starts[path])
            born[path[:-1]] += 1
        turns.append(tuple(torch.tensor(children[turn], device=device) for turn in sorted(children)))
    return PlacedTree(levels, width, turns)


def _best(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> Proposal:
    """The most probable nodes; of equals the earlier one, which may be the other's parent."""
    order = torch.sort(scores, descending=True, stable=True).indices
    kept = order[:count].sort().values
    new_places = torch.full((len(scores) + 1,), ROOT, device=scores.device)
    new_places[kept] = torch.arange(count, device=scores.device)
    return Proposal(tokens[kept], new_places[parents[kept]])
