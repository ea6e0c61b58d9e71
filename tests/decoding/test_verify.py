"""Sampling with a drafter has the base's own law: enumerated exactly, and checked on a real model."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from specdec.decoding import generate
from specdec.decoding.verify import Chooser, count_accepted, nucleus
from specdec.targets import Target
from tests.decoding.oracle import Oracle


def test_exact_law_on_a_toy_vocabulary() -> None:
    """Every outcome of (draft, base's choices) is enumerated: the law of the first two emitted tokens is the base's.

    The base is a table p[a][b] over three tokens: the law of the first token, and of the second given the first.
    """
    rng = np.random.default_rng(0)
    first = rng.dirichlet(np.ones(3))
    second = rng.dirichlet(np.ones(3), size=3)
    for draft in itertools.product(range(3), repeat=2):
        law = np.zeros((3, 3))
        # One pass gives choices after [], [d1] and [d1, d2], each from the base's law in that context.
        for c1, c2 in itertools.product(range(3), repeat=2):
            probability = first[c1] * second[draft[0]][c2]
            chosen = torch.tensor([c1, c2, 0])
            accepted = int(count_accepted(torch.tensor(draft), chosen))
            if accepted == 0:  # only c1 is emitted: the next pass starts from it
                law[c1] += probability * second[c1]
            else:
                law[draft[0], c2] += probability
        np.testing.assert_allclose(law, first[:, None] * second, atol=1e-12)


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
    assert int(count_accepted(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 9]))) == 3
    assert int(count_accepted(torch.tensor([1, 2, 3]), torch.tensor([1, 9, 3, 9]))) == 1
    assert int(count_accepted(torch.tensor([1, 2, 3]), torch.tensor([9, 2, 3, 9]))) == 0
