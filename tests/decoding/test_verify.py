"""Sampling with a drafter has the base's own law (enumerated in tests/evaluation/test_law.py), on a real model."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from specdec.decoding import generate
from specdec.decoding.verify import Typical, Verifier, accepted_path, likely_enough
from specdec.drafters import Proposal, Sampling, StaticTree, Tree, new_drafter
from specdec.errors import ConfigError
from specdec.targets import Target
from tests.decoding.oracle import Oracle
from tests.settings import medusa_settings


def draft(tokens: list[int], parents: list[int] | None = None) -> Proposal:
    return Proposal(torch.tensor(tokens), None if parents is None else torch.tensor(parents))


def path(proposal: Proposal, chosen: list[int]) -> list[int]:
    return accepted_path(proposal, torch.tensor(chosen)).nonzero().flatten().tolist()


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
        made = generate(target, oracle, [*prompt], 2, Sampling(temperature), seed=seed).token_ids
        if made[0] == first:
            seen[made[1]] += 1
    often = law * seen.sum() >= 5
    observed = np.append(seen[often], seen[~often].sum())
    wanted = np.append(law[often], law[~often].sum()) * seen.sum()
    assert seen.sum() > 50
    assert chisquare(observed, wanted / wanted.sum() * observed.sum()).pvalue > 1e-4


def test_the_same_seed_gives_the_same_text(target: Target) -> None:
    made = [generate(target, None, [1, 4, 40, 2, 5], 12, Sampling(1.0), seed=s).token_ids for s in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


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


def test_typical_acceptance_keeps_what_is_likely_enough() -> None:
    """min(epsilon, delta exp(-entropy)): a sure base refuses what is rare, an unsure one does not."""
    sure, unsure = [0.9, 0.06, 0.04], [0.34, 0.33, 0.33]
    base = torch.tensor([sure, unsure, sure])
    kept = likely_enough(draft([1, 1]), base, Typical(epsilon=0.5, delta=0.2))
    assert kept.tolist() == [False, True]  # 0.06 < 0.2 exp(-0.393) = 0.135; 0.33 > 0.2 exp(-1.0986) = 0.067
    kept = likely_enough(draft([1, 2], [-1, -1]), base, Typical(epsilon=0.05, delta=0.2))
    assert kept.tolist() == [True, False]


def test_typical_acceptance_is_lossy_and_asked_for_by_name(target: Target) -> None:
    prompt = [1, 4, 40, 2, 5]
    truth = generate(target, None, prompt, 12).token_ids
    wrong = Oracle([(t + 1) % target.vocab_size for t in truth], [], 3, target.vocab_size)
    made = generate(target, wrong, prompt, 12, typical=Typical(epsilon=1e-9, delta=1e-9))
    assert made.accepted_per_step[0] == 3, "everything is likely enough"
    assert made.token_ids != truth
    with pytest.raises(ConfigError, match="leave sample_drafts out"):
        generate(target, wrong, prompt, 12, Sampling(1.0), typical=Typical(), sample_drafts=True)
    with pytest.raises(ConfigError, match="epsilon 0"):
        Typical(epsilon=0)


def test_the_base_chooses_by_its_sampling() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert Verifier(Sampling(1.0, top_p=0.5)).choose(logits).tolist() == [1]
    assert Verifier(Sampling(2.0, top_k=1)).choose(logits).tolist() == [1]


def test_where_the_base_samples_drafts_are_drawn_too(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless told otherwise, and not in a dynamic tree, nor under the lossy rule, nor greedily."""
    drafter = new_drafter(target, medusa_settings()).eval()
    asked: list[bool] = []
    propose = drafter.propose

    def listening(state: Any, budget: int, tree: Any = None, draw: Any = None) -> Proposal:
        asked.append(draw is not None)
        return propose(state, budget, tree, draw)

    monkeypatch.setattr(drafter, "propose", listening)
    warm, static = Sampling(1.0), StaticTree.of([(0,), (1,)])
    for sampling, choices, drawn in (
        (warm, {}, True),
        (warm, {"tree": static}, True),
        (warm, {"sample_drafts": False}, False),
        (warm, {"tree": Tree(2, 2, 3)}, False),
        (warm, {"typical": Typical()}, False),
        (Sampling(), {}, False),
        (Sampling(), {"sample_drafts": True}, False),
    ):
        asked.clear()
        generate(target, drafter, [1, 4, 40, 2, 5], 6, sampling, seed=0, **choices)
        assert asked
        assert set(asked) == {drawn}, choices
