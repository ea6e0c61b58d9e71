"""Ranks as decoding meets them, and the tree that follows: the best one, by trying all of them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.decoding import generate
from specdec.drafters import StaticTree, new_drafter
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.sampling import Said
from specdec.evaluation.prediction import acceptance_length, static_tree
from specdec.evaluation.ranks import Following, rank_rates, search_tree
from specdec.targets import Target
from tests.settings import eagle3_settings, eagle_settings, medusa_settings

PROMPTS = [[1, 4, 40, 41, 2, 5], [1, 4, 77, 2, 5], [1, 4, 90, 91, 92, 2, 5]]


def test_the_base_as_its_own_draft_model_is_always_first(target: Target) -> None:
    rates = rank_rates(target, DraftModel.for_base(target, target), PROMPTS, 20, 3, 4, print)
    assert rates.tolist() == [[1, 0, 0, 0]] * 3


@pytest.mark.parametrize(
    "chosen", [medusa_settings(num_heads=3), eagle_settings(), eagle3_settings()], ids=lambda s: s.method
)
def test_the_first_rank_is_what_a_chain_accepts(target: Target, chosen: object) -> None:
    """The anchors are those of the chain, so rank 0 of level i is its conditional rate."""
    torch.manual_seed(0)
    drafter = new_drafter(target, chosen)
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    drafter.draft_tokens = 3
    rates = rank_rates(target, drafter.eval(), PROMPTS, 30, 3, 4, print)
    made = [generate(target, drafter, prompt, 30) for prompt in PROMPTS]
    steps = sum(one.steps for one in made)
    first = sum(a >= 1 for one in made for a in one.accepted_per_step)
    assert rates[0, 0] == pytest.approx(first / steps)
    assert (rates.sum(1) <= 1 + 1e-9).all()


def all_trees(depth: int, width: int, nodes: int) -> list[StaticTree]:
    paths = [p for n in range(1, depth + 1) for p in itertools.product(range(width), repeat=n)]
    chosen = [set(c) for c in itertools.combinations(paths, nodes)]
    return [StaticTree.of(c) for c in chosen if all(len(p) == 1 or p[:-1] in c for p in c)]


@given(
    rates=st.lists(st.lists(st.floats(0.01, 0.5), min_size=2, max_size=2), min_size=2, max_size=3),
    nodes=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_no_tree_of_the_size_is_better(rates: list[list[float]], nodes: int) -> None:
    table = np.array(rates)
    found = search_tree(table, nodes)
    assert len(found.paths) == nodes

    def expected(tree: StaticTree) -> float:
        return acceptance_length(rates, static_tree("one", tree.paths))

    assert expected(found) == pytest.approx(max(map(expected, all_trees(len(rates), 2, nodes))))


def test_what_is_never_right_is_left_out() -> None:
    assert search_tree(np.array([[0.5, 0.0], [0.25, 0.0]]), 9).paths == ((0,), (0, 0))
    assert search_tree(np.zeros((2, 2)), 9).paths == ((0,),)


def test_what_is_right_behind_a_wrong_choice_is_no_part_of_the_chain() -> None:
    """Ranks 1, 0, 0: a chain would have been wrong at once, so the next step starts one token later."""
    following = Following([9, 5, 6, 7, 8], depth=3, width=2)
    said = {(): [4, 5], (5,): [6, 4], (5, 6): [7, 4]}
    way: list[int] = []

    def extend(tokens: torch.Tensor, _parents: torch.Tensor) -> Said:
        way.extend(tokens.tolist())
        return Said(torch.zeros(1, 2), torch.tensor([said[tuple(way)]]))

    made = following.grow(3, Said(torch.zeros(2), torch.tensor(said[()])), extend)
    assert made.token_ids.tolist() == []
    assert following.place == 2
    assert following.hits.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert following.asked.tolist() == [1, 1, 1]
