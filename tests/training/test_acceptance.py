"""Acceptance read off teacher-forced answers is the one that decoding has."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from specdec.data.packing import Sequence, pack
from specdec.decoding import generate
from specdec.drafters import DrafterLoss, Features, new_drafter
from specdec.targets import Target
from specdec.training.acceptance import AcceptanceCount
from specdec.training.features import compute_features
from specdec.training.trainer import validate
from tests.settings import eagle3_settings, eagle_settings, medusa_settings


def test_the_walk_by_hand() -> None:
    # prompt p p, answer a0 .. a5; then a second document; then padding
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0]]).bool()
    documents = torch.tensor([[0] * 8 + [1] * 3 + [-1]])
    accepted = torch.tensor([[-1, 2, 0, 9, 9, 1, 0, -1, 1, 9, -1, -1]])
    # from 1: accept 2 -> 4, which says 9; so make 4 say 0, then 5 accepts 1 -> 7 ends the answer
    accepted[0, 4] = 0
    count = AcceptanceCount.empty(2)
    ids = torch.zeros(1, 12).long()
    features = Features(ids, mask, documents, ids, torch.zeros(1, 12, 1))
    count.add_batch(features, DrafterLoss(torch.tensor(0.0), {}, torch.zeros(2), accepted))
    assert count.steps == 4
    assert count.accepted.tolist() == [3, 1]
    assert count.acceptance_length == 2.0
    assert count.position_rates == [0.75, 0.25]


@pytest.mark.parametrize("settings", [medusa_settings(), eagle_settings(), eagle3_settings()], ids=lambda s: s.method)
def test_prediction_equals_decoding(target: Target, settings: Any) -> None:
    """A fresh drafter on a small base, near enough to the base's own head to be accepted now and then."""
    torch.manual_seed(0)
    drafter = new_drafter(target, settings)
    for parameter in drafter.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    drafter.eval()
    sequences, steps, accepted = [], 0, 0
    for seed in range(12):
        prompt = [1, 4, *np.random.default_rng(seed).integers(6, 200, 8).tolist(), 2, 5]
        made = generate(target, drafter, prompt, 60)
        ids = np.array(prompt + made.token_ids)
        sequences.append(Sequence(ids, np.arange(len(ids)) >= len(prompt)))
        steps += made.steps
        accepted += made.accepted
    features_of = partial(compute_features, target, aux_layers=drafter.aux_layers)
    predicted = validate(features_of, drafter, pack(sequences, 200, 0), 2)
    assert accepted > 0
    # The last step of an answer may look past its limit: that is all that may differ.
    assert abs(predicted["acceptance_length"] - (1 + accepted / steps)) < 0.03
