"""The chunked loss equals one written out in float64, whatever the loss, the vocabulary and the chunks."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec.drafters import head_loss as module
from specdec.drafters.head_loss import DraftVocabulary, Job, head_loss

KINDS = ("cross_entropy", "kl", "overlap", "hybrid")


@dataclass
class Case:
    """states[k][n_k, H]; weights[V or Vd, H], one or one a position; said[M, V]: the base's logits for token m."""

    states: list[Tensor]
    weights: list[Tensor]
    places: list[Tensor]
    labels: Tensor
    said: Tensor
    factors: Tensor
    to_target: Tensor | None
    scale: float

    def job(self, kind: str, measure: bool = False, teacher: bool = True) -> Job:
        return Job(
            kind=kind,
            places=self.places,
            labels=self.labels,
            teacher=(lambda places: self.said[places].float()) if teacher else None,
            factors=self.factors,
            vocabulary=None if self.to_target is None else DraftVocabulary.of(self.to_target, self.said.shape[1]),
            scale=self.scale,
            measure=measure,
        )

    @property
    def weight_of(self) -> list[Tensor]:
        return self.weights if len(self.weights) > 1 else self.weights * len(self.states)


def case(
    positions: int = 3,
    tokens: int = 40,
    vocab: int = 31,
    drafted: int | None = None,
    shared: bool = True,
    scale: float = 1.0,
    nested: bool = True,
    seed: int = 0,
) -> Case:
    """nested: position k drafts at places of which each is one further on, as in training; else at any places."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if nested:
        runs = [torch.rand(tokens, generator=generator) < 0.8]
        for _ in range(positions - 1):
            runs.append(runs[-1] & runs[-1].roll(-1))
        places = [(run.nonzero().squeeze(-1) + k) % tokens for k, run in enumerate(runs)]
        places = [place.sort().values for place in places]
    else:
        kept = torch.rand(positions, tokens, generator=generator) < 0.5
        places = [row.nonzero().squeeze(-1) for row in kept]
    width = drafted or vocab
    return Case(
        states=[random(len(p), 8).requires_grad_() for p in places],
        weights=[random(width, 8).requires_grad_() for _ in range(1 if shared else positions)],
        places=places,
        labels=torch.randint(0, vocab, (tokens,), generator=generator),
        said=2 * random(tokens, vocab),
        factors=torch.tensor([0.7**k / max(1, len(p)) for k, p in enumerate(places)]),
        to_target=torch.randperm(vocab, generator=generator)[:drafted].sort().values if drafted else None,
        scale=scale,
    )


def plain(made: Case, kind: str) -> tuple[Tensor, list[Tensor], dict[str, list[float]]]:
    """(loss, gradients of states and weights, sums by position), by autograd in float64."""
    states = [s.detach().double().requires_grad_() for s in made.states]
    weights = [w.detach().double().requires_grad_() for w in made.weights]
    said = torch.arange(made.said.shape[1]) if made.to_target is None else made.to_target
    total = torch.zeros((), dtype=torch.float64)
    sums: dict[str, list[float]] = {n: [] for n in ("loss", "accuracy", "top_4", "agreement", "overlap")}
    for k, state in enumerate(states):
        logits = made.scale * state @ weights[k % len(weights)].T
        log_p = logits.log_softmax(-1)
        base = made.said.double()[made.places[k]]
        q = base.softmax(-1)[:, said]
        label = made.labels[made.places[k]]
        right = said[None] == label[:, None]
        divergence = (q * (q.log() - log_p)).sum(-1)
        overlap = torch.minimum(log_p.exp(), q).sum(-1)
        weight = torch.exp(-3 * overlap).detach()  # chooses between the two, and is not learnt from
        loss = {
            "cross_entropy": -(log_p * right).sum(-1),
            "kl": divergence,
            "overlap": -overlap.log(),
            "hybrid": weight * divergence + (1 - weight) * (1 - overlap),
        }[kind].sum()
        total = total + float(made.factors[k]) * loss
        best = logits.argsort(-1, descending=True)[:, :4]
        sums["loss"].append(loss.item())
        sums["accuracy"].append((said[best[:, 0]] == label).sum().item())
        sums["top_4"].append((said[best] == label[:, None]).sum().item())
        sums["agreement"].append((said[best[:, 0]] == base.argmax(-1)).sum().item())
        sums["overlap"].append(overlap.sum().item())
    total.backward()
    return total.detach(), [t.grad for t in [*states, *weights] if t.grad is not None], sums


def chunked(made: Case, job: Job) -> tuple[Tensor, list[Tensor]]:
    for tensor in [*made.states, *made.weights]:
        tensor.grad = None
    loss = head_loss(job, made.states, made.weight_of)
    loss.backward()
    return loss.detach(), [t.grad for t in [*made.states, *made.weights] if t.grad is not None]


def assert_plain(made: Case, kind: str) -> None:
    job = made.job(kind, measure=True)
    wanted, wanted_gradients, sums = plain(made, kind)
    loss, found = chunked(made, job)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-6)
    for a, b in zip(found, wanted_gradients, strict=True):
        largest = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 + 1e-5 * largest)
    assert job.sums.keys() == sums.keys()
    for name, wanted_sums in sums.items():
        assert job.sums[name].tolist() == pytest.approx(wanted_sums, rel=1e-5, abs=1e-5), name


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 31 * 7)
    monkeypatch.setattr(module, "LEAST_ROWS", {"cpu": 3})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafted", [None, 12])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("shared", [True, False])
def test_equals_a_plain_float64_loss(kind: str, drafted: int | None, scale: float, shared: bool) -> None:
    assert_plain(case(drafted=drafted, scale=scale, shared=shared), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafted", [None, 12])
@pytest.mark.usefixtures("tiny_chunks")
def test_chunks_change_nothing(kind: str, drafted: int | None) -> None:
    assert_plain(case(drafted=drafted), kind)


@given(
    kind=st.sampled_from(KINDS),
    positions=st.integers(1, 4),
    tokens=st.integers(1, 30),
    drafted=st.none() | st.integers(1, 12),
    shared=st.booleans(),
    nested=st.booleans(),
    rows=st.integers(1, 40),
    scale=st.sampled_from([1.0, 3.0]),
    seed=st.integers(0, 2**20),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_equals_a_plain_float64_loss_for_any_places_and_chunks(kind: str, rows: int, **shape: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", 1)
        patch.setattr(module, "LEAST_ROWS", {"cpu": rows})
        assert_plain(case(vocab=13, **shape), kind)


def test_each_loss_learns_something_else() -> None:
    made = case(drafted=12)
    found = [chunked(made, made.job(kind))[1][-1] for kind in KINDS]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 0.01 * one.abs().max()


def test_what_the_base_says_outside_the_draft_vocabulary_is_missed() -> None:
    """The base is sure of a token that cannot be drafted: overlap is next to nothing, and no token is right."""
    made = case(positions=1, drafted=12)
    assert made.to_target is not None
    outside = next(i for i in range(31) if i not in made.to_target.tolist())
    made.said[:, outside] += 30
    made.labels[:] = outside
    job = made.job("kl", measure=True)
    chunked(made, job)
    assert job.sums["overlap"].item() < 1e-6
    assert [job.sums[n].item() for n in ("accuracy", "top_4", "agreement")] == [0, 0, 0]
    assert not job.rights[0].any()


def test_a_label_outside_the_draft_vocabulary_teaches_nothing() -> None:
    made = case(positions=1, drafted=12)
    assert made.to_target is not None
    known = torch.isin(made.labels[made.places[0]], made.to_target)
    assert known.any()
    assert not known.all()
    _, (to_states, _) = chunked(made, made.job("cross_entropy", teacher=False))
    assert to_states[~known].abs().max() == 0
    assert (to_states[known].abs().amax(-1) > 0).all()


def test_what_was_right_is_told_row_by_row() -> None:
    made = case(drafted=12)
    job = made.job("cross_entropy", teacher=False)
    chunked(made, job)
    assert made.to_target is not None
    for k, state in enumerate(made.states):
        best = made.to_target[(state @ made.weights[0].T).argmax(-1)]
        assert torch.equal(job.rights[k], best == made.labels[made.places[k]])


def test_hard_labels_need_no_base_unless_measured() -> None:
    made = case()
    job = made.job("cross_entropy", measure=True, teacher=False)
    assert chunked(made, job)[0].item() == pytest.approx(plain(made, "cross_entropy")[0].item(), rel=1e-6)
    assert set(job.sums) == {"loss", "accuracy", "top_4"}
    asked = made.job("cross_entropy")
    chunked(made, asked)
    assert set(asked.sums) == {"loss", "accuracy"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_gives_zero_and_gradients(kind: str) -> None:
    made = case()
    made.places = [p[:0] for p in made.places]
    made.states = [s.detach()[:0].requires_grad_() for s in made.states]
    loss, found = chunked(made, made.job(kind, measure=True))
    assert loss.item() == 0
    assert len(found) == 4
    assert all(g.isfinite().all() and not g.any() for g in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_is_sure_gives_finite_gradients(kind: str) -> None:
    made = case(drafted=12)
    made.said = torch.full_like(made.said, -1e4).scatter(1, made.labels[:, None], 1e4)
    made.states = [(s.detach() * 100).requires_grad_() for s in made.states]
    loss, found = chunked(made, made.job(kind, measure=True))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafted", [None, 12])
def test_bfloat16_autocast_is_close(kind: str, drafted: int | None) -> None:
    made = case(drafted=drafted)
    wanted, wanted_gradients, _ = plain(made, kind)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(made.job(kind), made.states, made.weight_of)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)
    for tensor, gradient in zip([*made.states, *made.weights], wanted_gradients, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.dtype is torch.float32
        assert torch.cosine_similarity(tensor.grad.double().flatten(), gradient.flatten(), 0) > 0.999


def test_the_gradient_is_that_of_the_scaled_loss() -> None:
    made = case()
    _, wanted = chunked(made, made.job("kl"))
    _, others = [g.clone() for g in wanted], made.states[0].grad
    assert others is not None
    for tensor in [*made.states, *made.weights]:
        tensor.grad = None
    (3 * head_loss(made.job("kl"), made.states, made.weight_of)).backward()
    assert made.states[0].grad is not None
    torch.testing.assert_close(made.states[0].grad, 3 * others)


def test_going_backward_twice_is_refused() -> None:
    made = case()
    loss = head_loss(made.job("kl"), made.states, made.weight_of)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once"):
        loss.backward()


class Sizes(TorchDispatchMode):
    """The largest result of any operation, how much of what they made is still there, and the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += "mm" in func.__name__
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, tensor.numel())
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes() // tensor.element_size())
        return result

    def kept(self) -> int:
        return sum(size for storage, size in self._made.values() if not storage.expired())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafted", [None, 400])
def test_no_matrix_of_all_rows_and_tokens_is_made_or_kept(
    monkeypatch: pytest.MonkeyPatch, kind: str, drafted: int | None
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(module, "LEAST_ROWS", {"cpu": 7})
    made = case(positions=2, tokens=200, vocab=500, drafted=drafted)
    whole = len(made.places[0]) * (drafted or 500)
    job = made.job(kind, measure=True)
    with Sizes() as sizes:
        loss = head_loss(job, made.states, made.weight_of)
        kept = sizes.kept()
        loss.backward()
    assert sizes.largest < whole / 10
    assert sum(w.numel() for w in made.weights) <= kept < whole / 4


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    """Logits are one product; gradients of states and weights are two more."""
    made = case(vocab=500)
    products = []
    for asked in (True, False):
        with torch.set_grad_enabled(asked), Sizes() as sizes:
            loss = head_loss(made.job("kl", measure=True), made.states, made.weight_of)
        assert loss.requires_grad is asked
        products.append(sizes.products)
    assert products == [9, 3]
