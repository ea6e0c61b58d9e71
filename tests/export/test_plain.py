"""What a loaded drafter says is what its format describes, computed apart from the library (`plain.py`)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from specdec.drafters import Drafter, DraftState, Medusa
from specdec.drafters.unrolled import Unrolled
from specdec.errors import ModelError
from specdec.export import load_any
from specdec.targets import Target
from tests.export import folders, plain
from tests.export.folders import write

IDS = [1, 4, 30, 41, 52, 63, 70, 12, 91]
MEDUSA = {
    "medusa_original": ("", "medusa_num_heads", "medusa_num_layers"),
    "medusa_modelopt": ("medusa_heads.", "num_medusa_heads", "num_medusa_layers"),
}
NORMS: list[dict[str, Any]] = [{}, {"norm_before_residual": True, "fc_norm": True, "norm_output": True}]


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def observed(target: Target, drafter: Drafter) -> DraftState:
    out = target.forward(torch.tensor([IDS[:-1]]), layers=drafter.aux_layers)
    state = DraftState()
    state.observe(torch.tensor(IDS[1:]), out.hidden[0], None if out.auxiliary is None else out.auxiliary[0])
    return state


def said(target: Target, drafter: Drafter, count: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of a chain of `count`."""
    assert isinstance(drafter, Unrolled)
    logits, finish = [], drafter.finish

    def heard(states: Tensor) -> tuple[Tensor, Tensor]:
        found = finish(states)
        logits.append((found[0] @ drafter.output_weight.T)[0])
        return found

    monkeypatch.setattr(drafter, "finish", heard)
    assert len(drafter.propose(observed(target, drafter), count).token_ids) == count
    return logits


@pytest.mark.parametrize("layout", MEDUSA)
@torch.no_grad()
def test_medusa_with_biases(deep: Target, tmp_path: Path, layout: str) -> None:
    prefix, heads_key, layers_key = MEDUSA[layout]
    path = write(tmp_path / "d", getattr(folders, layout)(folders.medusa(deep)))
    drafter, _ = load_any(path, deep)
    config, weights = plain.folder(path)
    config = config.get("medusa", config)
    state = plain.layer_outputs(deep.model, IDS[:-1])[1][-1]
    wanted = plain.medusa(weights, prefix, config[heads_key], config[layers_key], state)
    assert isinstance(drafter, Medusa)
    assert drafter.propose(observed(deep, drafter), 3).token_ids.tolist() == [int(row.argmax()) for row in wanted]
    close([b(state) @ w.T for b, w in zip(drafter.blocks, drafter.output_weights, strict=True)], wanted)


@pytest.mark.parametrize("draft_vocab_size", [60, None])
@pytest.mark.parametrize("norms", NORMS)
@torch.no_grad()
def test_speculators(
    deep: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    norms: dict[str, Any],
    draft_vocab_size: int | None,
) -> None:
    """Hidden state i is the output of layer i-1."""
    own = folders.eagle3(deep, draft_vocab_size, aux_layers=[1, 4, 8], dimensions={"rope_theta": 77.0}, **norms)
    path = write(tmp_path / "d", folders.eagle3_speculators(own))
    drafter, _ = load_any(path, deep)
    config, weights = plain.folder(path)
    outputs, _ = plain.layer_outputs(deep.model, IDS[:-1])
    sizes = config["transformer_layer_config"]
    auxiliary = torch.cat([outputs[i - 1] for i in config["eagle_aux_hidden_state_layer_ids"]], 1)
    facts = {**config, "rope": (sizes["rope_parameters"]["rope_theta"], 1.0)}
    wanted = plain.eagle3_chain(sizes, facts, weights, weights["embed_tokens.weight"], auxiliary, IDS[1:], 4)
    close(said(deep, drafter, 4, monkeypatch), wanted)


@torch.no_grad()
def test_speculators_with_further_layers_and_one_norm(
    deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What our own training does not make: a second layer, `input_norm`, and an embedding that differs."""
    config, tensors = folders.eagle3_speculators(folders.eagle3(deep))
    second = folders.eagle(deep, num_layers=2).state_dict()
    tensors |= {n: t for n, t in second.items() if n.startswith("layers.1.")}
    tensors["input_norm.weight"] = 1 + 0.1 * torch.randn(3 * deep.hidden_size)
    tensors["embed_tokens.weight"] = deep.embedding_weight.roll(1, 0)
    config["norm_before_fc"] = True
    config["transformer_layer_config"]["num_hidden_layers"] = 2
    path = write(tmp_path / "d", (config, tensors))
    drafter, _ = load_any(path, deep)
    sizes = config["transformer_layer_config"]
    outputs, _ = plain.layer_outputs(deep.model, IDS[:-1])
    auxiliary = torch.cat([outputs[i - 1] for i in config["eagle_aux_hidden_state_layer_ids"]], 1)
    facts = {**config, "rope": (sizes["rope_parameters"]["rope_theta"], 1.0)}
    wanted = plain.eagle3_chain(sizes, facts, tensors, tensors["embed_tokens.weight"], auxiliary, IDS[1:], 3)
    close(said(deep, drafter, 3, monkeypatch), wanted)
    drafter.save_pretrained(tmp_path / "ours")
    close(said(deep, load_any(tmp_path / "ours", deep)[0], 3, monkeypatch), wanted)


@pytest.mark.parametrize("old", [False, True])
@torch.no_grad()
def test_modelopt(deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Auxiliary layer i is the output of layer i. The rotary settings are those of transformers 4."""
    config, tensors = folders.eagle3_modelopt(folders.eagle3(deep, aux_layers=[1, 4, 7]), old)
    config |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 99.0}
    path = write(tmp_path / "d", (config, tensors))
    drafter, _ = load_any(path, deep)
    outputs, _ = plain.layer_outputs(deep.model, IDS[:-1])
    auxiliary = torch.cat([outputs[i] for i in config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]], 1)
    weights = folders.renamed(plain.folder(path)[1], "midlayer.", "layers.0.")
    facts = {"rope": (99.0, 2.0)}
    wanted = plain.eagle3_chain(config, facts, weights, deep.embedding_weight, auxiliary, IDS[1:], 3)
    close(said(deep, drafter, 3, monkeypatch), wanted)


@torch.no_grad()
def test_an_eagle_whose_fc_has_a_bias(deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SafeAILab's first ones have. The layer: no input norm, no final norm; the base's output layer."""
    config, tensors = folders.eagle_vllm(folders.eagle(deep))
    tensors["fc.bias"] = 0.5 * torch.randn(deep.hidden_size)
    drafter, _ = load_any(write(tmp_path / "d", (config, tensors)), deep)
    state = plain.layer_outputs(deep.model, IDS[:-1])[1]
    x = torch.cat([deep.embedding_weight[IDS[1:]], state], 1) @ tensors["fc.weight"].T + tensors["fc.bias"]
    x = x + plain.attention(tensors, "layers.0.self_attn", x, config, (config["rope_theta"], 1.0))
    y = plain.rms(x, tensors["layers.0.post_attention_layernorm.weight"], config["rms_norm_eps"])
    gate, up, down = (tensors[f"layers.0.mlp.{p}_proj.weight"].T for p in ("gate", "up", "down"))
    x = x + (silu(y @ gate) * (y @ up)) @ down
    wanted = [deep.model.lm_head.weight @ x[-1]]
    close(said(deep, drafter, 1, monkeypatch), wanted)
    with pytest.raises(ModelError, match=r"eagle_fc_bias is true, wanted absent.*fc\.bias \[64\] is there"):
        drafter.save_pretrained(tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
