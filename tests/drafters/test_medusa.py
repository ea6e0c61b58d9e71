"""Medusa: how it starts, what its loss sees, how positions line up, and its checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from specdec.drafters import DraftState, Medusa, load_drafter, new_drafter
from specdec.drafters.interface import Drafter
from specdec.errors import ModelError
from specdec.targets import Target
from tests.drafters.examples import (
    Document,
    anchors,
    answer_features,
    assert_same,
    batch,
    cut,
    decoded,
    documents,
    fit,
    gradients,
    greedy_answers,
    identical,
    new,
    observed,
    packed,
    saved_again,
    spoilt,
    walked,
    without,
)
from tests.settings import medusa, medusa_settings
from tests.tiny import write_base


def settings(heads: int = 3, layers: int = 2, **own: Any) -> Any:
    return type(medusa_settings()).model_validate({**medusa(heads, layers), **own})


def drafter_of(target: Target, heads: int = 3, layers: int = 2, **own: Any) -> Medusa:
    made = new(target, settings(heads, layers, **own))
    assert isinstance(made, Medusa)
    return made


def seen(hidden: Tensor) -> DraftState:
    state = DraftState()
    state.observe(torch.tensor([7]), hidden[None], None)
    return state


def head(drafter: Medusa, i: int, hidden: Tensor) -> Tensor:
    """The logits of head i in float64, written out."""
    weights = {name: t.double() for name, t in drafter.state_dict(keep_vars=True).items()}
    x = hidden.double()
    for j in range(drafter.num_layers):
        z = weights[f"blocks.{i}.layers.{j}.weight"] @ x
        x = x + z * torch.sigmoid(z)
    return weights["lm_head.weight" if drafter.lm_head is not None else f"lm_heads.{i}.weight"] @ x


@pytest.mark.parametrize("shared", [False, True])
def test_heads_start_as_the_bases_output_layer(target: Target, shared: bool) -> None:
    drafter = new_drafter(target, settings(shared_output_layer=shared))
    hidden = torch.randn(64)
    wanted = target.logits(hidden).argmax().item()
    assert drafter.propose(seen(hidden), 3).token_ids.tolist() == [wanted] * 3
    assert drafter.propose(seen(hidden), 2).token_ids.tolist() == [wanted] * 2
    assert drafter.propose(seen(hidden), 9).token_ids.tolist() == [wanted] * 3
    assert not any(weight.data_ptr() == target.output_weight.data_ptr() for weight in drafter.parameters())


def test_heads_read_the_newest_state(target: Target) -> None:
    drafter = drafter_of(target)
    document = documents(target)[0]
    state = observed(document, 4)
    for upto in (5, 8, 9):
        wanted = [int(head(drafter, i, document.hidden[upto - 1]).argmax()) for i in range(3)]
        assert drafter.propose(observed(document, upto, upto - 2, state), 3).token_ids.tolist() == wanted
        assert state.hidden is None, "what is read is not kept"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_the_loss_equals_one_written_out(target: Target, loss: str, shared: bool) -> None:
    drafter = drafter_of(target, loss=loss, shared_output_layer=shared)
    made = documents(target)

    def one(document: Document, t: int, i: int) -> Tensor:
        log_p = head(drafter, i, document.hidden[t]).log_softmax(0)
        if loss == "cross_entropy":
            return -log_p[document.token_ids[t + 2 + i]]
        q = (target.output_weight.double() @ document.hidden[t + 1 + i].double()).softmax(0)
        return (q * (q.log() - log_p)).sum()

    found = gradients(drafter, packed(made))
    drafter.zero_grad()
    total = torch.zeros(())
    for i in range(3):
        total = total + 0.8**i * torch.stack([one(d, t, i) for d in made for t in anchors(d, i)]).mean()
    total.backward()
    assert_same(found[:1], [total.detach()], 1e-6)
    assert_same(found[1:], [p.grad for p in drafter.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", ["cross_entropy", "hybrid"])
def test_the_mask_works_to_the_bit(target: Target, loss: str) -> None:
    drafter = drafter_of(target, loss=loss)
    features = packed(documents(target))
    before = gradients(drafter, features)
    for row, column in (~features.loss_mask).nonzero().tolist():
        features.token_ids[row, column] += 1
        assert identical(before, gradients(drafter, features)), (row, column)
    first = features.answer_run(1)  # where answers start from is read; what stands before, and padding, is not
    features.hidden[~features.loss_mask & ~first] = 4.0
    assert identical(before, gradients(drafter, features))
    if loss == "cross_entropy":
        features.token_ids[0, 8] += 1
    else:
        features.hidden[0, 8] += 1  # says token 9 of the answer
    assert not identical(before, gradients(drafter, features))


def test_packing_and_parts_change_nothing(target: Target) -> None:
    drafter = drafter_of(target, loss="kl")
    made = documents(target)
    whole = gradients(drafter, packed(made))
    assert_same(gradients(drafter, batch([[d] for d in made], 14)), whole)
    counts = torch.tensor([sum(len(anchors(d, k)) for d in made) for k in range(3)])
    first, second = (gradients(drafter, batch([part], 40, counts)) for part in (made[:2], made[2:]))
    assert_same([a + b for a, b in zip(first, second, strict=True)], whole)


def test_accepted_counts_leading_right_heads() -> None:
    """Hidden states from which head i reads token t+2+i exactly: all heads are right everywhere they can be."""
    wide: Any = SimpleNamespace(hidden_size=600, vocab_size=200)
    drafter = Medusa(wide, num_heads=3, num_layers=1, shared=False)
    features = packed(documents(wide))
    features.hidden.zero_()
    for i in range(3):
        shifted = features.token_ids.roll(-(2 + i), 1)
        features.hidden.scatter_(2, (shifted + 200 * i)[..., None], 1.0)
        drafter.lm_heads[i].weight.data = torch.eye(600)[200 * i : 200 * (i + 1)]
    result = drafter.loss(features)
    assert torch.equal(result.sums["accuracy"], result.counts.float())
    places = [3, 4, 5, 6, 7, 8]  # of the first document; its answer is tokens 4 to 9
    assert result.accepted[0, places].tolist() == [3, 3, 3, 2, 1, -1]
    drafter.lm_heads[1].weight.data = torch.eye(600)[200:400].roll(1, 0)  # the second head is wrong everywhere
    result = drafter.loss(features)
    assert result.accepted[0, places].tolist() == [1, 1, 1, 1, 1, -1]
    assert result.sums["accuracy"].tolist() == [result.counts[0], 0, result.counts[2]]


@pytest.mark.parametrize("shared", [False, True])
def test_training_foretells_decoding(target: Target, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    stop = int(greedy_answers(target, 1)[0].token_ids[-10])
    monkeypatch.setattr(target, "stop_ids", target.stop_ids | {stop})
    answers = greedy_answers(target)
    drafter: Drafter = new_drafter(target, settings(shared_output_layer=shared))
    fit(drafter, answer_features(target, drafter, answers[:4]), 30)
    foretold = walked(drafter, answer_features(target, drafter, answers))
    made = decoded(target, drafter, answers)
    assert foretold.steps == made.steps
    assert foretold.accepted.tolist() == made.accepted.tolist()
    assert made.steps > made.accepted[0] > made.accepted[-1], "the example must accept and reject"
    assert made.accepted[1] > 3


@pytest.mark.parametrize("shared", [False, True])
def test_the_checkpoint_is_what_vllm_loads(target: Target, tmp_path: Path, shared: bool) -> None:
    drafter = drafter_of(target, shared_output_layer=shared)
    drafter.save_pretrained(tmp_path / "d")
    assert json.loads((tmp_path / "d" / "config.json").read_text()) == {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": 64,
        "vocab_size": 262,
        "num_heads": 3,
        "num_hidden_layers": 2,
        "medusa_fc_bias": False,
        "original_lm_head": shared,
    }
    tensors = load_file(tmp_path / "d" / "model.safetensors")
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    heads = ["lm_head.weight"] if shared else [f"lm_heads.{i}.weight" for i in range(3)]
    blocks = {f"blocks.{i}.layers.{j}.weight": (64, 64) for i in range(3) for j in range(2)}
    assert shapes == blocks | dict.fromkeys(heads, (262, 64))
    assert (tmp_path / "d" / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("shared", [False, True])
def test_saved_heads_draft_the_same(target: Target, tmp_path: Path, shared: bool) -> None:
    drafter = drafter_of(target, shared_output_layer=shared)
    loaded = saved_again(drafter, tmp_path)
    assert loaded.draft_tokens == 3
    for hidden in torch.randn(5, 64):
        assert torch.equal(drafter.propose(seen(hidden), 3).token_ids, loaded.propose(seen(hidden), 3).token_ids)


def test_it_drafts_what_it_is_asked_for(target: Target) -> None:
    """As many as there are heads, at most."""
    drafter = drafter_of(target)
    hidden = torch.randn(64)
    whole = drafter.propose(seen(hidden), 9).token_ids
    assert len(whole) == 3
    assert torch.equal(drafter.propose(seen(hidden), 2).token_ids, whole[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("lm_heads.2.weight"), r"lm_heads\.2\.weight: missing"),
        (cut("blocks.0.layers.1.weight"), r"blocks\.0\.layers\.1\.weight: \(63, 64\), wanted \(64, 64\)"),
        (lambda t: t.update(bias=torch.ones(1)), r"bias: \(1,\), wanted none"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(target: Target, tmp_path: Path, change: Any, message: str) -> None:
    spoilt(drafter_of(target), tmp_path / "d", change)
    with pytest.raises(ModelError, match=message):
        load_drafter(tmp_path / "d", target)


def test_what_does_not_fit_is_refused(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    drafter_of(target).save_pretrained(folder)
    write_base(tmp_path / "other", seed=5)
    other = Target.from_pretrained(tmp_path / "other", device="cpu")
    with pytest.raises(ModelError, match=r"for another base: its weights \(\w+\) differ from those of "):
        load_drafter(folder, other)
    load_drafter(folder, other, force=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 65}))
    with pytest.raises(ModelError, match="heads of 65 x 262, and tiny-llama has 64 x 262"):
        load_drafter(folder, target)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ModelError, match="describes no Medusa heads: model_type is 'llama'"):
        load_drafter(folder, target)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="is damaged"):
        load_drafter(folder, target)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_drafter(folder, target)
