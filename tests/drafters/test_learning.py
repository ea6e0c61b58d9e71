"""On answers that count upwards every method learns to draft, and cannot when its labels stand one off.

What is right is read off drafts, not off the loss: a loss with shifted labels would find itself right.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.data.packing import Sequence
from specdec.drafters import Drafter, DraftState, medusa, new_drafter, unrolled
from specdec.drafters.head_loss import Job, head_loss
from specdec.targets import Target
from tests.drafters.examples import answer_features, fit
from tests.settings import eagle3_settings, eagle_settings, medusa_settings
from tests.tiny import write_base

LENGTH = 12
HARD: dict[str, Any] = {"loss": "cross_entropy", "unroll_decay": 1.0}
SETTINGS: dict[str, Any] = {
    "medusa": medusa_settings(num_heads=3),
    "eagle": eagle_settings({**HARD, "feature_weight": 0.0}),
    "eagle3": eagle3_settings(HARD),
    "eagle3 of few tokens": eagle3_settings({**HARD, "draft_vocab_size": 40, "norm_output": True, "fc_norm": True}),
}


@pytest.fixture(scope="module")
def clear_target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A base whose hidden states show the token they have read: small weights leave the embeddings on top."""
    folder = tmp_path_factory.mktemp("clear")
    write_base(folder, initializer_range=0.02)
    return Target.from_pretrained(folder, device="cpu")


def counting(count: int, seed: int) -> list[Sequence]:
    """Three tokens of no account, a number, and the twelve behind it: what comes next is known from what is there."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        first = 10 + i % 6
        ids = np.concatenate([rng.integers(40, 46, 3), np.arange(first, first + LENGTH + 1)])
        made.append(Sequence(ids, np.arange(len(ids)) >= 4))
    return made


def counts_of(answers: list[Sequence], vocab_size: int) -> Tensor:
    return torch.bincount(
        torch.tensor(np.concatenate([a.token_ids[a.loss_mask] for a in answers])), minlength=vocab_size
    )


def trained(target: Target, settings: Any) -> Drafter:
    torch.manual_seed(0)
    answers = counting(18, 0)
    drafter = new_drafter(target, settings, counts_of(answers, target.vocab_size))
    fit(drafter, answer_features(target, drafter, answers, 68), 60 if drafter.method == "medusa" else 120, 4e-3)
    return drafter


def right(target: Target, drafter: Drafter) -> list[float]:
    """How often each draft position says the very token that comes there."""
    found = []
    for answer in counting(6, 0):
        ids = torch.from_numpy(answer.token_ids)
        with torch.no_grad():
            read = target.forward(ids[None], layers=drafter.aux_layers)
        for t in range(3, 3 + LENGTH - 3):
            state = DraftState()
            auxiliary = None if read.auxiliary is None else read.auxiliary[0, : t + 1]
            state.observe(ids[1 : t + 2], read.hidden[0, : t + 1], auxiliary)
            with torch.no_grad():
                found.append(drafter.propose(state, 3).token_ids == ids[t + 2 : t + 5])
    return torch.stack(found).float().mean(0).tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_draft_position_is_learnt(clear_target: Target, name: str) -> None:
    rates = right(clear_target, trained(clear_target, SETTINGS[name]))
    assert len(rates) == 3
    assert min(rates) > 0.99


@pytest.mark.parametrize(("name", "shift"), [("medusa", -1), ("medusa", 1), ("eagle", 1), ("eagle3", -1)])
def test_labels_one_off_are_not_the_right_ones(
    clear_target: Target, monkeypatch: pytest.MonkeyPatch, name: str, shift: int
) -> None:
    def moved(job: Job, states: list[Tensor], weights: list[Tensor]) -> Tensor:
        job.labels = job.labels.roll(shift)
        return head_loss(job, states, weights)

    for module in (medusa, unrolled):
        monkeypatch.setattr(module, "head_loss", moved)
    # Later positions go on from a draft that is one off, and may be right by that.
    assert right(clear_target, trained(clear_target, SETTINGS[name]))[0] < 0.2


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "overlap", "hybrid"])
@pytest.mark.parametrize("name", ["medusa", "eagle", "eagle3"])
def test_every_loss_falls(target: Target, loss: str, name: str) -> None:
    settings = SETTINGS[name].model_copy(update={"loss": loss})
    torch.manual_seed(0)
    answers = counting(8, 0)
    drafter = new_drafter(target, settings)
    losses = fit(drafter, answer_features(target, drafter, answers, 68), 12)
    assert losses[-1] < 0.9 * losses[0]
