"""What EAGLE and EAGLE-3 share: training sees what drafting will see, and learns from answers alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from specdec.drafters import DraftState, new_drafter, unrolled
from specdec.drafters.head_loss import Job, head_loss
from specdec.drafters.unrolled import Unrolled
from specdec.targets import Target
from tests.drafters.examples import (
    Document,
    anchors,
    answer_features,
    assert_same,
    batch,
    decoded,
    documents,
    fit,
    gradients,
    greedy_answers,
    identical,
    new,
    observed,
    packed,
    walked,
)
from tests.drafters.reference import Reference
from tests.settings import eagle3_settings, eagle_settings

SETTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {"eagle": eagle_settings, "eagle3": eagle3_settings}
METHODS = tuple(SETTINGS)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("eagle", {}),
    ("eagle", {"num_layers": 2, "feature_weight": 0.0, "loss": "cross_entropy"}),
    (
        "eagle",
        {
            "num_layers": 2,
            "token_weight": 0.3,
            "dimensions": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10},
        },
    ),
    ("eagle", {"dimensions": {"max_position_embeddings": 8}}),
    ("eagle3", {}),
    ("eagle3", {"fc_norm": True, "loss": "cross_entropy"}),
    ("eagle3", {"norm_output": True}),
    ("eagle3", {"norm_before_residual": True, "dimensions": {"rope_theta": 50.0, "num_key_value_heads": 2}}),
    ("eagle3", {"draft_vocab_size": 60, "dimensions": {"hidden_size": 48, "num_attention_heads": 3}}),
    ("eagle3", {"draft_vocab_size": 60, "loss": "cross_entropy", "aux_layers": [1]}),
]
HeadLoss = Callable[[Job, list[Tensor], list[Tensor]], Tensor]


def token_counts(target: Target) -> Tensor:
    """In no order of the ids, so that a draft is hardly ever its own place in the draft vocabulary."""
    return torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(4))


def drafter_of(target: Target, method: str, **own: Any) -> Unrolled:
    made = new(target, SETTINGS[method](own), token_counts(target))
    assert isinstance(made, Unrolled)
    return made


def written_out(reference: Reference, made: list[Document], settings: Any) -> tuple[list[Tensor], Tensor]:
    """(what the output layer reads at all anchors of each draft position, the loss)."""
    states, total = [], torch.zeros(())
    for k in range(3):
        found = [(d, t, reference.chain(d, t, k + 1, forced=True)[0][k]) for d in made for t in anchors(d, k)]
        losses = [reference.loss(d, t, k, said, settings.loss) for d, t, said in found]
        total = total + 0.8**k * getattr(settings, "token_weight", 1.0) * torch.stack(losses).mean()
        if weight := getattr(settings, "feature_weight", 0.0):
            apart = [smooth_l1_loss(said, d.hidden[t + 1 + k].double()) for d, t, said in found]
            total = total + 0.8**k * weight * torch.stack(apart).mean()
        states.append(torch.stack([said for _, _, said in found]).detach())
    return states, total


@pytest.mark.parametrize(("method", "own"), OPTIONS)
def test_training_equals_every_anchor_by_itself(
    target: Target, monkeypatch: pytest.MonkeyPatch, method: str, own: dict[str, Any]
) -> None:
    drafter = drafter_of(target, method, **own)
    made = documents(target, drafter.aux_layers)
    seen: list[Tensor] = []

    def keep(job: Job, states: list[Tensor], weights: list[Tensor]) -> Tensor:
        seen.extend(s.detach() for s in states)
        return head_loss(job, states, weights)

    monkeypatch.setattr(unrolled, "head_loss", keep)
    found = gradients(drafter, packed(made))
    reference = Reference(drafter)
    states, loss = written_out(reference, made, SETTINGS[method](own))
    loss.backward()
    for a, b in zip(seen, states, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    learnt = [reference.weights[name].grad for name, _ in drafter.named_parameters()]
    assert_same(found[:1], [loss.detach()])
    assert_same(found[1:], [g for g in learnt if g is not None], 5e-5)


@pytest.mark.parametrize(("method", "own"), OPTIONS)
def test_drafting_equals_every_anchor_by_itself(target: Target, method: str, own: dict[str, Any]) -> None:
    """Several steps with one cache, each with another number of new true tokens."""
    drafter = drafter_of(target, method, **own)
    document = documents(target, drafter.aux_layers, ("p" * 4 + "a" * 12,))[0]
    reference = Reference(drafter)
    state, read = DraftState(), 0
    for upto, budget in ((4, 3), (5, 3), (9, 2), (12, 3), (13, 1), (15, 5)):
        observed(document, upto, read, state)
        drafts = drafter.propose(state, budget).token_ids.tolist()
        read = upto
        assert len(drafts) == budget
        assert drafts == reference.chain(document, upto - 1, len(drafts), forced=False)[1]
        assert drafts == drafter.propose(observed(document, upto), budget).token_ids.tolist()


def test_drafting_goes_on_beyond_the_room_of_a_fresh_cache(target: Target) -> None:
    drafter = drafter_of(target, "eagle", num_layers=2)
    document = documents(target, (), ("p" * 200,))[0]
    state = DraftState()
    for upto in range(1, 199):
        drafts = drafter.propose(observed(document, upto, upto - 1, state), 3).token_ids
        if upto in (63, 64, 65, 130, 198):
            assert torch.equal(drafts, drafter.propose(observed(document, upto), 3).token_ids)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_only_answers_are_learnt(target: Target, monkeypatch: pytest.MonkeyPatch, method: str, loss: str) -> None:
    """Neither label nor distribution of a token in a prompt, in padding, or first in an answer changes a bit."""
    drafter = drafter_of(target, method, loss=loss)
    features = packed(documents(target, drafter.aux_layers))
    before = gradients(drafter, features)
    drafted = torch.zeros_like(features.loss_mask)
    for row, column in features.loss_mask.nonzero().tolist():
        inside = column > 0 and features.loss_mask[row, column - 1]
        anchored = column > 1 and features.document_ids[row, column - 2] == features.document_ids[row, column]
        drafted[row, column] = inside and anchored

    def strange(places: Tensor) -> HeadLoss:
        changed = places.flatten()

        def spoilt(job: Job, states: list[Tensor], weights: list[Tensor]) -> Tensor:
            job.labels = torch.where(changed, (job.labels + 1) % 200, job.labels)
            if (teacher := job.teacher) is not None:
                job.teacher = lambda at: torch.where(changed[at, None], -teacher(at), teacher(at))
            return head_loss(job, states, weights)

        return spoilt

    monkeypatch.setattr(unrolled, "head_loss", strange(~drafted))
    assert identical(before, gradients(drafter, features))
    for row, column in drafted.nonzero().tolist():
        one = torch.zeros_like(drafted)
        one[row, column] = True
        monkeypatch.setattr(unrolled, "head_loss", strange(one))
        assert drafter.loss(features).loss != before[0]


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_the_end_of_an_answer_change_no_bit(target: Target, method: str) -> None:
    drafter = drafter_of(target, method)
    features = packed(documents(target, drafter.aux_layers))
    before = gradients(drafter, features)
    padding = features.document_ids < 0
    features.token_ids[padding] = 77
    features.hidden[padding] = 5.0
    features.hidden[0, 9] = 5.0  # what the base says behind the first document
    if features.auxiliary is not None:
        features.auxiliary[padding] = 5.0
        features.auxiliary[0, 8:10] = 5.0  # nothing is drafted from there
        features.hidden[0, :4] = 5.0  # EAGLE-3 reads the others, and what the base says of prompts is not learnt
    assert identical(before, gradients(drafter, features))
    features.hidden[0, 8] += 1.0  # says the last token of the first document
    assert not identical(before[:1], gradients(drafter, features)[:1])


@pytest.mark.parametrize("method", METHODS)
def test_packing_changes_nothing(target: Target, method: str) -> None:
    drafter = drafter_of(target, method)
    made = documents(target, drafter.aux_layers)
    alone = gradients(drafter, batch([[d] for d in made], 14))
    assert_same(gradients(drafter, packed(made)), alone)
    assert_same(gradients(drafter, batch([made[::-1]], 60)), alone)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_parts_equals_the_whole(target: Target, method: str) -> None:
    drafter = drafter_of(target, method)
    made = documents(target, drafter.aux_layers)
    whole = gradients(drafter, packed(made))
    counts = torch.tensor([sum(len(anchors(d, k)) for d in made) for k in range(3)])
    first, second = (gradients(drafter, batch([part], 40, counts)) for part in (made[:2], made[2:]))
    assert_same([a + b for a, b in zip(first, second, strict=True)], whole)


@pytest.mark.parametrize(("method", "own"), [("eagle", {"num_layers": 2}), ("eagle3", {"norm_output": True})])
def test_checkpointing_changes_no_gradient(target: Target, method: str, own: dict[str, Any]) -> None:
    drafter = drafter_of(target, method, unroll_steps=4, **own)
    features = packed(documents(target, drafter.aux_layers))
    plain = gradients(drafter, features)
    drafter.checkpointing = True
    assert_same(gradients(drafter, features), plain, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_answers_gives_zero(target: Target, method: str) -> None:
    drafter = drafter_of(target, method)
    found = gradients(drafter, batch([documents(target, drafter.aux_layers, ("pppp", "ppa"))], 9))
    assert len(found) >= 10
    assert not any(t.any() for t in found)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_is_close(target: Target, method: str) -> None:
    drafter = drafter_of(target, method)
    features = packed(documents(target, drafter.aux_layers))
    wanted = gradients(drafter, features)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(drafter, features)
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=0.01)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("eagle", {}),
        ("eagle", {"num_layers": 2, "draft_tokens": 5}),
        ("eagle3", {"draft_vocab_size": 200}),
        ("eagle3", {"draft_tokens": 5, "norm_output": True, "fc_norm": True}),
        ("eagle3", {"dimensions": {"hidden_size": 48, "num_attention_heads": 3}}),
    ],
)
def test_training_foretells_decoding(
    target: Target, monkeypatch: pytest.MonkeyPatch, method: str, own: dict[str, Any]
) -> None:
    """Step by step, on the base's own greedy answers, by a drafter that has learnt some of them."""
    stop = int(greedy_answers(target, 1)[0].token_ids[-10])
    monkeypatch.setattr(target, "stop_ids", target.stop_ids | {stop})
    answers = greedy_answers(target)
    assert len({len(answer) for answer in answers}) > 1
    torch.manual_seed(0)
    settings = SETTINGS[method]({"loss": "cross_entropy", **own})
    drafter = new_drafter(target, settings, token_counts(target))
    fit(drafter, answer_features(target, drafter, answers[:4]), 30)
    foretold = walked(drafter, answer_features(target, drafter, answers))
    made = decoded(target, drafter, answers)
    assert foretold.steps == made.steps
    assert foretold.accepted.tolist() == made.accepted.tolist()
    assert made.steps > made.accepted[0] > made.accepted[-1], "the example must accept and reject"
    assert made.accepted[1] > 3
