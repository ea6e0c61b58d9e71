"""Sampling with a drafter has the base's own law: enumerated exactly, and checked on a real model."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from specdec.decoding import generate
from specdec.decoding.verify import Chooser, accepted_path, nucleus
from specdec.drafters import Proposal
from specdec.targets import Target
from tests.decoding.oracle import Oracle


def draft(tokens: list[int], parents: list[int] | None = None) -> Proposal:
    return Proposal(torch.tensor(tokens), None if parents is None else torch.tensor(parents))


def path(proposal: Proposal, chosen: list[int]) -> list[int]:
    return accepted_path(proposal, torch.tensor(chosen)).tolist()


def subsets(size: int) -> list[tuple[int, ...]]:
    """Of three tokens, `size` different ones, in every order: the order of siblings must not matter."""
    return list(itertools.permutations(range(3), size))


def trees() -> list[Proposal]:
    """Chains of two, and every tree of two levels: up to three first tokens, each with up to two behind it."""
    made = [draft(list(pair)) for pair in itertools.product(range(3), repeat=2)]
    for width in (1, 2, 3):
        for first in subsets(width):
            for behind in itertools.product([(), (1,), (0, 2), (2, 1)], repeat=width):
                tokens, parents = list(first), [-1] * width
                for place, following in enumerate(behind):
                    tokens += following
                    parents += [place] * len(following)
                made.append(draft(tokens, parents))
    return made


def test_exact_law_on_a_toy_vocabulary() -> None:
    """Every outcome of the base's choices is enumerated: the law of the first two emitted tokens is the base's.

    The base is a table p[a][b] over three tokens: the law of the first token, and of the second given the first.
    """
    rng = np.random.default_rng(0)
    first = rng.dirichlet(np.ones(3))
    second = rng.dirichlet(np.ones(3), size=3)
    for proposal in trees():
        tokens = proposal.token_ids.tolist()
        parents = [-1, 0] if proposal.parents is None else proposal.parents.tolist()
        above = [i for i, parent in enumerate(parents) if parent == -1]  # what is behind the second is not looked at
        law = np.zeros((3, 3))
        for choices in itertools.product(range(3), repeat=1 + len(above)):
            chosen = [choices[0]] + [0] * len(tokens)
            probability = first[choices[0]]
            for place, choice in zip(above, choices[1:], strict=True):
                chosen[place + 1] = choice
                probability *= second[tokens[place]][choice]
            accepted = path(proposal, chosen)
            if not accepted:  # one token is emitted: the next pass starts from it
                law[choices[0]] += probability * second[choices[0]]
            else:
                law[tokens[accepted[0]], chosen[accepted[0] + 1]] += probability
                for place in accepted[1:]:
                    assert tokens[place] == chosen[parents[place] + 1]
        np.testing.assert_allclose(law, first[:, None] * second, atol=1e-12, err_msg=str(proposal))


@pytest.mark.parametrize("drafted", [True, False])
def test_sampled_tokens_follow_the_bases_distribution(target: Target, drafted: bool) -> None:
    prompt, count, temperature = [1, 4, 40, 2, 5], 1500, 0.7
    with torch.no_grad():
        logits = target.logits(target.forward(torch.tensor([prompt])).hidden[0, -1])
        first = int(logits.argmax())
        logits = target.logits(target.forward(torch.tensor([[*prompt, first]])).hidden[0, -1])
    law = torch.softmax(logits / temperature, -1).numpy()
    likeliest = int(law.argmax())
    seen = np.zeros(len(law))
    for seed in range(count):
        oracle = Oracle([0, likeliest], [], 1, target.vocab_size) if drafted else None
        made = generate(target, oracle, [*prompt], 2, temperature=temperature, seed=seed).token_ids
        if made[0] == first:
            seen[made[1]] += 1
    often = law * seen.sum() >= 5
    observed = np.append(seen[often], seen[~often].sum())
    wanted = np.append(law[often], law[~often].sum()) * seen.sum()
    assert seen.sum() > 50
    assert chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue > 1e-4


def test_the_same_seed_gives_the_same_text(target: Target) -> None:
    made = [generate(target, None, [1, 4, 40, 2, 5], 12, 1.0, seed=s).token_ids for s in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


def test_nucleus_keeps_the_smallest_set() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert nucleus(probabilities, 0.5)[0].nonzero().flatten().tolist() == [1]
    assert nucleus(probabilities, 0.6)[0].nonzero().flatten().tolist() == [1, 3]
    assert nucleus(probabilities, 1.0)[0].tolist() == pytest.approx(probabilities[0].tolist())
    assert Chooser(1.0, 0.5)(probabilities.log()).tolist() == [1]


def test_accepted_is_the_leading_run() -> None:
    assert path(draft([1, 2, 3]), [1, 2, 3, 9]) == [0, 1, 2]
    assert path(draft([1, 2, 3]), [1, 9, 3, 9]) == [0]
    assert path(draft([1, 2, 3]), [9, 2, 3, 9]) == []
    assert path(draft([]), [9]) == []


def test_accepted_is_the_one_path_that_is_right_from_the_start() -> None:
    #        newest -> 5 -> 7 -> 5
    #               -> 6 -> 7
    #                  6 -> 8
    tree = draft([5, 6, 7, 7, 8, 5], [-1, -1, 0, 1, 1, 2])
    assert path(tree, [6, 0, 8, 0, 0, 0, 0]) == [1, 4]
    assert path(tree, [6, 7, 9, 0, 0, 0, 0]) == [1]
    assert path(tree, [5, 7, 8, 5, 0, 0, 0]) == [0, 2, 5]
    assert path(tree, [5, 9, 8, 5, 0, 0, 0]) == [0]
    assert path(tree, [9, 7, 7, 5, 0, 0, 0]) == [], "what follows is right, and the first token is not"
