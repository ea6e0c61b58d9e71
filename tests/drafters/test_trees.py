"""Draft trees: the most probable nodes, each behind its parent; grown by every method as path by path."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec.decoding import generate
from specdec.drafters import DraftState, Draw, Medusa, Proposal, Sampling, StaticTree, Tree, new_drafter
from specdec.drafters.sampling import Said, pick
from specdec.drafters.trees import ROOT, parse_tree
from specdec.drafters.unrolled import DraftCache, Unrolled
from specdec.errors import ConfigError
from specdec.targets import Target
from tests.settings import eagle3_settings, eagle_settings, medusa_settings


def paths_of(proposal: Proposal) -> list[tuple[int, ...]]:
    """The tokens on the way to each node."""
    assert proposal.parents is not None
    found: list[tuple[int, ...]] = []
    for token, parent in zip(proposal.token_ids.tolist(), proposal.parents.tolist(), strict=True):
        assert parent < len(found), "a node comes behind its parent"
        found.append((*(() if parent == ROOT else found[parent]), token))
    return found


class Table:
    """log p of the next token, any function of the path: random, and the same for the same path."""

    def __init__(self, seed: int, vocabulary: int, width: int):
        self.seed, self.vocabulary, self.width = seed, vocabulary, width
        self.level: list[tuple[int, ...]] = [()]

    def logits(self, way: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *way)) % 2**31)
        return 2 * torch.randn(self.vocabulary, generator=generator)

    def extend(self, tokens: Tensor, parents: Tensor) -> Said:
        ways = [self.level[max(p, 0)] for p in parents.tolist()]
        self.level = [(*way, token) for way, token in zip(ways, tokens.tolist(), strict=True)]
        return pick(torch.stack([self.logits(way) for way in self.level]), self.width)

    def probability(self, way: tuple[int, ...]) -> float:
        return sum(float(self.logits(way[:i]).log_softmax(-1)[token]) for i, token in enumerate(way))


def grown(tree: Tree, table: Table, depth: int | None = None) -> Proposal:
    first = pick(table.logits(())[None], tree.width).at(0)
    return tree.grow(depth or tree.depth, first, table.extend)


@given(seed=st.integers(0, 999), depth=st.integers(1, 3), nodes=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_a_wide_tree_holds_the_most_probable_of_all_paths(seed: int, depth: int, nodes: int) -> None:
    """With every token kept and every node given children, there is nothing better."""
    vocabulary = 3
    width = vocabulary**depth  # more than any level has
    table = Table(seed, vocabulary, width)
    every = [w for n in range(1, depth + 1) for w in itertools.product(range(vocabulary), repeat=n)]
    best = sorted(every, key=table.probability, reverse=True)[:nodes]
    assert set(paths_of(grown(Tree(depth, width, nodes), table))) == set(best)


@given(
    seed=st.integers(0, 999),
    depth=st.integers(1, 5),
    width=st.integers(1, 4),
    nodes=st.integers(1, 40),
    room=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_it_is_a_tree(seed: int, depth: int, width: int, nodes: int, room: int) -> None:
    made = paths_of(grown(Tree(depth, width, nodes), Table(seed, 5, width), min(depth, room)))
    assert len(set(made)) == len(made), "children of one node differ"
    assert len(made) <= nodes
    assert max(map(len, made)) <= min(depth, room)
    if nodes >= width:
        assert sum(len(way) == 1 for way in made) >= 1


@given(parents=st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_ancestors(parents: list[int]) -> None:
    tree = [p % (i + 1) - 1 for i, p in enumerate(parents)]
    above: list[set[int]] = []
    for i, parent in enumerate(tree):
        above.append({i} | (above[parent] if parent >= 0 else set()))
    found = Proposal(torch.zeros(len(tree)), torch.tensor(tree)).ancestors()
    assert [set(row.nonzero().flatten().tolist()) for row in found] == above


def test_ancestors_of_a_chain() -> None:
    chain, tree = Proposal(torch.zeros(9)), Proposal(torch.zeros(9), torch.arange(-1, 8))
    assert torch.equal(chain.ancestors(), tree.ancestors())


@pytest.mark.parametrize("changes", [{"depth": 0}, {"width": 0}, {"nodes": -1}])
def test_no_tree(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="of a tree is"):
        Tree(**{"depth": 2, "width": 2, "nodes": 3, **changes})


def test_trees_from_the_command_line() -> None:
    assert parse_tree("5,4,20") == Tree(5, 4, 20)
    for text in ("5,4", "5,4,x", ""):
        with pytest.raises(ConfigError, match=r"write DEPTH,WIDTH,NODES, as 5,4,20$"):
            parse_tree(text)
    with pytest.raises(ConfigError, match=r"write DEPTH,WIDTH,NODES, as 5,4,20 \(width of a tree is 0"):
        parse_tree("5,0,3")


CHOICES: dict[str, Any] = {
    "medusa": medusa_settings(num_heads=3),
    "eagle": eagle_settings(),
    "eagle of two layers": eagle_settings({"num_layers": 2}),
    "eagle3": eagle3_settings(),
    "eagle3, draft vocabulary": eagle3_settings({"draft_vocab_size": 40}),
    "eagle3, norms": eagle3_settings({"fc_norm": True, "norm_output": True}),
}


def moved(target: Target, choice: str) -> Any:
    """A drafter that says something of its own at every position."""
    torch.manual_seed(1)
    drafter = new_drafter(target, CHOICES[choice], torch.arange(target.vocab_size))
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return drafter.eval()


def observed(target: Target, drafter: Any, ids: list[int], state: DraftState, start: int = 0) -> DraftState:
    """The base has read ids[:-1], and `state` hears of it from `start` on."""
    read = target.forward(torch.tensor([ids[:-1]]), layers=drafter.aux_layers)
    auxiliary = None if read.auxiliary is None else read.auxiliary[0, start:]
    state.observe(torch.tensor(ids[start + 1 :]), read.hidden[0, start:], auxiliary)
    return state


def said(target: Target, drafter: Any, ids: list[int], way: tuple[int, ...]) -> Tensor:
    """log p[draft vocabulary] behind the drafted `way`: the path alone, with a cache of its own."""
    state = observed(target, drafter, ids, DraftState())
    if isinstance(drafter, Medusa):
        assert state.hidden is not None
        head = len(way)
        return (drafter.blocks[head](state.hidden[-1:]) @ drafter.output_weights[head].T)[0].log_softmax(-1)
    assert isinstance(drafter, Unrolled)
    cache = DraftCache(len(drafter.layers))
    output, position = drafter._read(state, cache)
    for i, token in enumerate(way):
        states = drafter.finish(output)[1]
        output = drafter._append(cache, states, torch.tensor([token]), position + i + 1)
    logits = drafter.finish(output)[0][0] @ drafter.output_weight.T * drafter.logit_scale
    return logits.log_softmax(-1)


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_a_tree_is_what_its_paths_are_one_by_one(target: Target, choice: str) -> None:
    """Also in a later step, behind a cache; and nothing of a tree stays in the cache."""
    drafter = moved(target, choice)
    state = observed(target, drafter, [1, 4, 30, 41, 52, 63], DraftState())
    longer = [1, 4, 30, 41, 52, 63, 70, 71, 72]
    for ids, nodes in ((longer[:6], 21), (longer, 12)):
        tree = Tree(3, 3, nodes)
        if ids is longer:
            observed(target, drafter, ids, state, start=5)
        level: list[tuple[int, ...]] = [()]

        def top(ways: list[tuple[int, ...]], ids: list[int] = ids, width: int = 3) -> Said:
            scores, tokens = torch.stack([said(target, drafter, ids, way) for way in ways]).topk(width)
            return Said(scores, tokens if isinstance(drafter, Medusa) else drafter._to_target(tokens))

        def extend(tokens: Tensor, parents: Tensor) -> Said:
            nonlocal level
            above = [level[max(p, 0)] for p in parents.tolist()]
            level = [(*way, token) for way, token in zip(above, tokens.tolist(), strict=True)]
            return top(level)

        wanted = tree.grow(3, top(level).at(0), extend)
        made = drafter.propose(state, 9, tree)
        assert paths_of(made) == paths_of(wanted)
        assert len(paths_of(made)) == nodes
        assert nodes < 21 or max(map(len, paths_of(made))) == 3


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_the_narrowest_tree_is_the_chain(target: Target, choice: str) -> None:
    drafter = moved(target, choice)
    ids = [1, 4, 30, 41, 52, 63]
    for budget in (1, 2, 3):
        chain = drafter.propose(observed(target, drafter, ids, DraftState()), budget)
        tree = drafter.propose(observed(target, drafter, ids, DraftState()), budget, Tree(3, 1, 9))
        assert torch.equal(tree.token_ids, chain.token_ids)
        assert tree.parents is not None
        assert tree.parents.tolist() == [-1, 0, 1][:budget]


# ---------------------------------------------------------------- static trees


@given(
    paths=st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    room=st.integers(1, 4),
)
@settings(max_examples=80, deadline=None)
def test_a_static_tree_is_the_ranks_of_its_paths(paths: set[tuple[int, ...]], seed: int, room: int) -> None:
    closed = {path[:i] for path in paths for i in range(1, len(path) + 1)}
    tree, table = StaticTree.of(closed), Table(seed, 5, 3)
    first = pick(table.logits(())[None], tree.width).at(0)
    made = tree.grow(min(room, tree.depth), first, table.extend)

    def tokens(path: tuple[int, ...]) -> tuple[int, ...]:
        way: tuple[int, ...] = ()
        for rank in path:
            way = (*way, int(table.logits(way).topk(rank + 1).indices[-1]))
        return way

    wanted = [tokens(path) for path in tree.paths if len(path) <= room]
    assert paths_of(made) == wanted
    assert made.parents is not None
    assert made.turns is not None
    parents = made.parents.tolist()
    older = [parents[:place].count(parent) for place, parent in enumerate(parents)]
    turns = [[place for place, siblings in enumerate(older) if siblings == turn] for turn in range(max(older) + 1)]
    assert [places.tolist() for places in made.turns] == turns


@pytest.mark.parametrize("wrong", [[], [()], [(0,), (1, 0)], [(0,), (0, -1)]])
def test_no_static_tree(wrong: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match="static tree"):
        StaticTree.of(wrong)


def test_a_static_tree_wider_than_the_vocabulary() -> None:
    table = Table(0, 2, 3)
    with pytest.raises(ConfigError, match="child of rank 2, and the drafter knows 2 tokens"):
        StaticTree.of([(2,)]).grow(1, pick(table.logits(())[None], 3).at(0), table.extend)


STATIC = StaticTree.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 1)])


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_a_static_tree_of_every_drafter_is_its_paths_one_by_one(target: Target, choice: str) -> None:
    drafter = moved(target, choice)
    ids = [1, 4, 30, 41, 52, 63]
    made = drafter.propose(observed(target, drafter, ids, DraftState()), 9, STATIC)
    for path, way in zip(STATIC.paths, paths_of(made), strict=True):
        token = int(said(target, drafter, ids, way[:-1]).topk(3).indices[path[-1]])
        assert way[-1] == (token if isinstance(drafter, Medusa) else int(drafter._to_target(torch.tensor(token))))


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_every_drafter_says_what_it_drew_from(target: Target, choice: str) -> None:
    """laws[i] is the drafter's own distribution behind the path, without the siblings in front; chains and trees."""
    drafter = moved(target, choice)
    ids = [1, 4, 30, 41, 52, 63]
    sampling = Sampling(1.3, top_k=30)
    for tree in (None, STATIC):
        state = observed(target, drafter, ids, DraftState())
        made = drafter.propose(state, 3, tree, Draw(sampling, torch.Generator().manual_seed(0)))
        assert made.laws is not None
        parents = [-1, 0, 1] if made.parents is None else made.parents.tolist()
        ways = paths_of(Proposal(made.token_ids, torch.tensor(parents)))
        for place, way in enumerate(ways):
            law = torch.zeros(target.vocab_size)
            own = sampling.probabilities(said(target, drafter, ids, way[:-1]))
            where = torch.arange(len(own))
            law[where if isinstance(drafter, Medusa) else drafter._to_target(where)] = own
            ranks = [STATIC.paths[i][-1] for i in range(len(ways))] if tree else [0] * len(ways)
            if ranks[place] == sum(
                parents[i] == parents[place] for i in range(place)
            ):  # all in front are in the tree
                for other in range(place):
                    if parents[other] == parents[place]:
                        law[made.token_ids[other]] = 0
                torch.testing.assert_close(made.laws[place], law / law.sum(), rtol=1e-3, atol=1e-6)


def test_a_dynamic_tree_is_not_drawn(target: Target) -> None:
    with pytest.raises(ConfigError, match="a chain or a static tree"):
        generate(
            target, moved(target, "medusa"), [1, 4, 30], 5, Sampling(1.0), tree=Tree(2, 2, 3), sample_drafts=True
        )
