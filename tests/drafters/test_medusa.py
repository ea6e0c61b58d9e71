"""Medusa: how it starts, what its loss sees, how positions line up, and its checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.drafters import Features, Medusa, load_drafter, new_drafter
from specdec.errors import ModelError
from specdec.targets import Target
from tests.settings import medusa_settings
from tests.tiny import write_base

SETTINGS = medusa_settings(num_heads=3, num_layers=2)


def features(hidden_size: int = 64, seed: int = 0) -> Features:
    """Packed rows: (prompt 4, answer 6, prompt 3, answer 5, padding 2), and two documents, the second all answer."""
    generator = torch.Generator().manual_seed(seed)
    documents = torch.tensor([[0] * 10 + [1] * 8 + [-1] * 2, [0] * 12 + [1] * 8])
    mask = torch.tensor([[0] * 4 + [1] * 6 + [0] * 3 + [1] * 5 + [0] * 2, [0] * 5 + [1] * 15]).bool()
    ids = torch.randint(6, 200, (2, 20), generator=generator)
    return Features(ids, mask, documents, torch.randn(2, 20, hidden_size, generator=generator))


def test_heads_start_as_the_bases_output_layer(target: Target) -> None:
    drafter = new_drafter(target, SETTINGS)
    hidden = torch.randn(64)
    wanted = target.logits(hidden).argmax().item()
    assert drafter.propose(hidden, 3).token_ids.tolist() == [wanted] * 3
    assert drafter.propose(hidden, 2).token_ids.tolist() == [wanted] * 2


def gradients(drafter: Medusa, batch: Features) -> list[Tensor]:
    drafter.zero_grad()
    result = drafter.loss(batch)
    result.loss.backward()
    return [result.loss.detach(), *(p.grad.clone() for p in drafter.parameters() if p.grad is not None)]


def test_the_mask_works_to_the_bit(target: Target) -> None:
    drafter = new_drafter(target, SETTINGS)
    assert isinstance(drafter, Medusa)
    batch = features()
    before = gradients(drafter, batch)
    answers = batch.loss_mask
    for row, column in (~answers).nonzero().tolist():
        batch.token_ids[row, column] += 1
        after = gradients(drafter, batch)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), (row, column)
    batch.token_ids[0, 8] += 1
    assert not torch.equal(before[0], gradients(drafter, batch)[0])


def test_the_loss_equals_one_written_out(target: Target) -> None:
    drafter = new_drafter(target, SETTINGS)
    assert isinstance(drafter, Medusa)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = features()
    wanted = 0.0
    for i in range(3):
        losses = []
        for b in range(2):
            for t in range(20):
                last = t + 2 + i
                same = last < 20 and (batch.document_ids[b, t : last + 1] == batch.document_ids[b, t]).all()
                if not same or batch.document_ids[b, t] < 0 or not batch.loss_mask[b, t + 1 : last + 1].all():
                    continue
                x = batch.hidden[b, t].double()
                for layer in drafter.blocks[i].layers:  # type: ignore[union-attr]
                    z = layer.weight.double() @ x
                    x = x + z * torch.sigmoid(z)
                logits = drafter.lm_heads[i].weight.double() @ x  # type: ignore[operator]
                losses.append(-torch.log_softmax(logits, 0)[batch.token_ids[b, last]])
        wanted += 0.8**i * torch.stack(losses).mean().item()
    assert drafter.loss(batch).loss.item() == pytest.approx(wanted, rel=1e-6)


def test_accepted_counts_leading_right_heads(target: Target) -> None:
    """Hidden states from which head i reads token t+2+i exactly: all heads are right everywhere they can be."""
    drafter = Medusa(hidden_size=200 * 3, vocab_size=200, num_heads=3, num_layers=1)
    batch = features()
    hidden = torch.zeros(2, 20, 600)
    for i in range(3):
        shifted = batch.token_ids.roll(-(2 + i), 1)
        hidden.scatter_(2, (shifted + 200 * i)[..., None], 1.0)
        drafter.lm_heads[i].weight.data = torch.eye(600)[200 * i : 200 * (i + 1)]
    exact = Features(batch.token_ids, batch.loss_mask, batch.document_ids, hidden)
    result = drafter.loss(exact)
    assert result.accuracies.tolist() == [1, 1, 1]
    anchors = [3, 4, 5, 6, 7, 8]  # of the first document; its answer is tokens 4 to 9
    assert result.accepted[0, anchors].tolist() == [3, 3, 3, 2, 1, -1]
    drafter.lm_heads[1].weight.data = torch.eye(600)[200:400].roll(1, 0)  # the second head is wrong everywhere
    assert drafter.loss(exact).accepted[0, anchors].tolist() == [1, 1, 1, 1, 1, -1]


def test_the_checkpoint_is_what_vllm_loads(target: Target, tmp_path: Path) -> None:
    drafter = new_drafter(target, SETTINGS)
    drafter.save_pretrained(tmp_path / "d", {"base": target.identity.as_dict()})
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert config["architectures"] == ["MedusaModel"]
    counting = {k for k in config if "num" in k and ("heads" in k or "layers" in k)}
    assert counting == {"num_heads", "num_hidden_layers"}
    tensors = load_file(tmp_path / "d" / "model.safetensors")
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    heads = {f"lm_heads.{i}.weight": (target.vocab_size, 64) for i in range(3)}
    assert shapes == heads | {f"blocks.{i}.layers.{j}.weight": (64, 64) for i in range(3) for j in range(2)}
    loaded = load_drafter(tmp_path / "d", target)
    hidden = torch.randn(64)
    assert loaded.propose(hidden, 3).token_ids.tolist() == drafter.propose(hidden, 3).token_ids.tolist()
    assert (tmp_path / "d" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    first = (tmp_path / "d" / "model.safetensors").read_bytes()
    drafter.save_pretrained(tmp_path / "e", {"base": target.identity.as_dict()})
    assert (tmp_path / "e" / "model.safetensors").read_bytes() == first


def damage(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_what_does_not_fit_is_refused(target: Target, tmp_path: Path) -> None:
    folder = tmp_path / "d"

    def save() -> None:
        new_drafter(target, SETTINGS).save_pretrained(folder, {"base": target.identity.as_dict()})

    save()
    write_base(tmp_path / "other", seed=5)
    other = Target.from_pretrained(tmp_path / "other", device="cpu")
    with pytest.raises(ModelError, match=f"another weights: it has {target.identity.weights}"):
        load_drafter(folder, other)
    load_drafter(folder, other, force=True)
    damage(folder, lambda t: t.pop("lm_heads.2.weight"))
    with pytest.raises(ModelError, match=r"lm_heads\.2\.weight: missing"):
        load_drafter(folder, target)
    save()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelError, match="is damaged"):
        load_drafter(folder, target)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_drafter(folder, target)
