"""What is no drafter, does not fit, or would have to be passed over is refused in one line that names it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.drafters import load_drafter
from specdec.errors import ModelError
from specdec.export import load_any
from specdec.targets import Target
from tests.drafters import examples
from tests.export import folders
from tests.export.folders import Change, Folder, changed, write
from tests.export.test_load import sharded
from tests.tiny import write_base

LAYOUTS: dict[str, Callable[[Target], Folder]] = {
    "medusa original": lambda t: folders.medusa_original(folders.medusa(t)),
    "medusa modelopt": lambda t: folders.medusa_modelopt(folders.medusa(t)),
    "medusa vllm": lambda t: folders.medusa_vllm(folders.medusa(t)),
    "eagle vllm": lambda t: folders.eagle_vllm(folders.eagle(t)),
    "eagle3 vllm": lambda t: folders.eagle3_vllm(folders.eagle3(t, aux_layers=[2, 4, 5])),
    "eagle3 speculators": lambda t: folders.eagle3_speculators(folders.eagle3(t)),
    "eagle3 modelopt": lambda t: folders.eagle3_modelopt(folders.eagle3(t)),
}


def refused(folder: Path, target: Target, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_any(folder, target)
    message = str(caught.value)
    assert re.search(words, message), message
    assert str(folder) in message
    assert "\n" not in message


def setting(**values: Any) -> Change:
    return lambda config, _: config.update(values)


def within(part: str, **values: Any) -> Change:
    return lambda config, _: config[part].update(values)


def lacking(key: str) -> Change:
    return lambda config, tensors: (config if key in config else tensors).pop(key)


def with_tensor(name: str, tensor: Tensor | None = None) -> Change:
    return lambda _, tensors: tensors.update({name: torch.ones(3) if tensor is None else tensor})


def spoilt(name: str, value: float) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[1] = value

    return change


SOME = {
    "medusa original": "1.0.linear.bias",
    "medusa modelopt": "medusa_heads.1.0.linear.weight",
    "medusa vllm": "lm_heads.1.weight",
    "eagle vllm": "layers.0.mlp.up_proj.weight",
    "eagle3 vllm": "midlayer.self_attn.v_proj.weight",
    "eagle3 speculators": "norm.weight",
    "eagle3 modelopt": "fc.weight",
}
OURS = {"1.0.linear.bias": "blocks.1.layers.0.bias", "medusa_heads.1.0.linear.weight": "blocks.1.layers.0.weight",
        "midlayer.self_attn.v_proj.weight": "layers.0.self_attn.v_proj.weight"}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_wants_its_tensors_and_no_other(deep: Target, tmp_path: Path, layout: str) -> None:
    name = SOME[layout]
    ours = re.escape(OURS.get(name, name))
    for change, words in (
        (lacking(name), f"{ours}: missing"),
        (with_tensor("stranger.weight"), "stranger.weight"),
        (lambda _, t: t.update({name: t[name][..., :-1]}), ours),
        (spoilt(name, float("nan")), f"not finite .*{ours}"),
        (spoilt(name, float("-inf")), f"not finite .*{ours}"),
    ):
        refused(write(tmp_path / "d", changed(LAYOUTS[layout](deep), change)), deep, words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_bases_drafter(deep: Target, tmp_path: Path, layout: str) -> None:
    write_base(tmp_path / "base", num_hidden_layers=8, hidden_size=32)
    other = Target.from_pretrained(tmp_path / "base", device="cpu")
    refused(write(tmp_path / "d", LAYOUTS[layout](deep)), other, "is for another base: its .*32")


ONE_BY_ONE: list[tuple[str, Change, str]] = [
    ("medusa original", setting(medusa_num_heads=4), "blocks.3.layers.0.bias: missing"),
    ("medusa original", setting(medusa_num_layers=0), "medusa_num_layers is 0, and must be a whole number from 1"),
    ("medusa original", setting(medusa_num_heads="3"), "medusa_num_heads is '3'"),
    ("medusa modelopt", lambda c, _: c["medusa"].pop("num_medusa_heads"), "num_medusa_heads is missing"),
    ("medusa modelopt", spoilt("model.norm.weight", 7.0), "another base: its model.norm.weight differs"),
    ("medusa vllm", setting(medusa_fc_bias=False), r"blocks.0.layers.0.bias: \(64,\), wanted none"),
    ("medusa vllm", setting(truncated_vocab_size=100), "truncated_vocab_size"),
    ("medusa vllm", setting(vocab_size=100), "another base: its vocab_size is 100"),
    ("medusa vllm", setting(logit_scale=0.5), "logit_scale is 0.5"),
    ("medusa vllm", with_tensor("token_map", torch.arange(3).float()), "token_map"),
    ("eagle vllm", with_tensor("lm_head.weight"), "lm_head.weight is not tiny-llama-8's"),
    ("eagle vllm", with_tensor("layers.0.input_layernorm.weight"), "layers.0.input_layernorm.weight"),
    ("eagle vllm", lacking("intermediate_size"), "intermediate_size is missing"),
    ("eagle vllm", setting(hidden_act="gelu"), "hidden_act is 'gelu'"),
    ("eagle vllm", setting(model_type="qwen2"), "model_type is 'qwen2'"),
    ("eagle vllm", setting(num_attention_heads=True), "num_attention_heads is True"),
    ("eagle vllm", setting(num_key_value_heads=4), "2 num_attention_heads are no multiple of 4"),
    ("eagle vllm", setting(rms_norm_eps=0), "rms_norm_eps is 0"),
    ("eagle vllm", setting(rope_theta="1e4"), "rope_theta is '1e4'"),
    ("eagle vllm", setting(rope_scaling={"type": "dynamic", "factor": 2.0}), "rotary embeddings of type 'dynamic'"),
    ("eagle vllm", setting(rope_scaling=2.0), "rope_scaling is 2.0"),
    ("eagle vllm", setting(layer_types=["sliding_attention"]), "sliding windows"),
    ("eagle vllm", setting(quantization_config={"quant_method": "fp8"}), "quantised .quantization_config."),
    ("eagle vllm", with_tensor("fc.weight", torch.ones(64, 128, dtype=torch.int16)), "quantised .fc.weight is int16"),
    (
        "eagle vllm",
        with_tensor("fc.weight", torch.ones(64, 128).to(torch.float8_e4m3fn)),
        "quantised .fc.weight is fl",
    ),
    ("eagle3 vllm", lacking("d2t"), "d2t is missing"),
    ("eagle3 vllm", lambda _, t: t.update(t2d=t["t2d"].roll(1)), "d2t and t2d name different"),
    ("eagle3 vllm", lambda _, t: t.update(d2t=t["d2t"] + 10000), "d2t must name 60 tokens below 262"),
    ("eagle3 vllm", setting(draft_vocab_size=263), "draft_vocab_size is 263"),
    ("eagle3 vllm", setting(draft_vocab_size=262), "d2t moves tokens"),
    ("eagle3 vllm", setting(eagle_aux_hidden_state_layer_ids=[1, 2, 9]), r"states \[1, 2, 9\].* layers 1 to 8"),
    ("eagle3 vllm", setting(eagle_aux_hidden_state_layer_ids=[1, 1, 2]), r"states \[1, 1, 2\].*once"),
    ("eagle3 vllm", setting(eagle_aux_hidden_state_layer_ids=[1, 2]), "fc.weight"),
    ("eagle3 vllm", setting(eagle_aux_hidden_state_layer_ids="2"), "must list layers"),
    ("eagle3 vllm", setting(eagle_config={"use_aux_hidden_state": False}), "without auxiliary states"),
    ("eagle3 speculators", setting(speculators_model_type="dflash"), "'dflash', a method that is not known"),
    ("eagle3 speculators", lacking("transformer_layer_config"), "transformer_layer_config is missing"),
    ("eagle3 speculators", within("transformer_layer_config", model_type="qwen3"), "the layers are qwen3's"),
    ("eagle3 speculators", lacking("norm_before_residual"), "norm_before_residual is missing"),
    ("eagle3 speculators", setting(fc_norm=True), "fc_norm.0.weight: missing"),
    ("eagle3 speculators", setting(norm_before_fc=True), "input_norm.weight: missing"),
    ("eagle3 speculators", lacking("speculators_config"), "speculative_tokens is missing"),
    (
        "eagle3 speculators",
        within("speculators_config", proposal_methods=[{"speculative_tokens": 0}]),
        "speculative_tokens is 0",
    ),
    ("eagle3 speculators", spoilt("embed_tokens.weight", float("nan")), "not finite .*embed_tokens.weight"),
    ("eagle3 modelopt", within("eagle_config", use_aux_hidden_state=False), "use_aux_hidden_state is not true"),
    ("eagle3 modelopt", within("eagle_config", eagle_aux_hidden_state_layer_ids=[1, 2, 8]), r"\[2, 3, 9\]"),
    ("eagle3 modelopt", with_tensor("parallel_draft_heads.0.lm_head.weight"), "parallel_draft_heads"),
]


@pytest.mark.parametrize(("layout", "change", "words"), ONE_BY_ONE, ids=[f"{c[0]}: {c[2]}" for c in ONE_BY_ONE])
def test_one_wrong_thing(deep: Target, tmp_path: Path, layout: str, change: Change, words: str) -> None:
    refused(write(tmp_path / "d", changed(LAYOUTS[layout](deep), change)), deep, words)


def test_training_tensors_of_speculators_are_no_part_of_the_drafter(deep: Target, tmp_path: Path) -> None:
    change = with_tensor("verifier_norm.weight", torch.full((64,), float("nan")))
    load_any(write(tmp_path / "d", changed(LAYOUTS["eagle3 speculators"](deep), change)), deep)


def test_no_drafter(deep: Target, base_folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", deep, "is no folder with a drafter")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", deep, "is no drafter: config.json is missing")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refused(tmp_path / "empty", deep, "is no drafter: model.safetensors is missing")
    (tmp_path / "empty" / "config.json").write_text("[]")
    refused(tmp_path / "empty", deep, "must be a JSON object")
    (tmp_path / "empty" / "config.json").write_text("{")
    refused(tmp_path / "empty", deep, "config.json is damaged")
    refused(base_folder, deep, r"\(LlamaForCausalLM\) holds no drafter of a method that is known here")


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin"])
def test_pickle_is_never_loaded(deep: Target, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "d", LAYOUTS["medusa original"](deep))
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, deep, f"pickle .{name}.*convert it to model.safetensors")


def test_damaged_files(deep: Target, tmp_path: Path) -> None:
    folder = write(tmp_path / "d", LAYOUTS["eagle vllm"](deep))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    refused(folder, deep, "model.safetensors is damaged")
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "other.safetensors").write_bytes(whole)
    refused(folder, deep, "holds 2 safetensors files")


def test_damaged_shards(deep: Target, tmp_path: Path) -> None:
    sharded(tmp_path / "d", LAYOUTS["eagle3 speculators"](deep))
    index = tmp_path / "d" / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    load_any(tmp_path / "d", deep)
    index.write_text(json.dumps({"weight_map": {n: f for n, f in listed.items() if n != "norm.weight"}}))
    refused(tmp_path / "d", deep, "differ in norm.weight")
    index.write_text(json.dumps({"weight_map": listed | {"stranger.weight": listed["norm.weight"]}}))
    refused(tmp_path / "d", deep, "differ in stranger.weight")
    index.write_text(json.dumps({"weight_map": listed | {"norm.weight": "../model.safetensors"}}))
    refused(tmp_path / "d", deep, "weight_map must give each tensor a file of this folder")
    index.write_text(json.dumps({"weight_map": listed | {"norm.weight": "third.safetensors"}}))
    refused(tmp_path / "d", deep, "third.safetensors is missing")


@pytest.mark.parametrize("method", ["medusa", "eagle", "eagle3"])
def test_our_own_too_must_be_finite(deep: Target, tmp_path: Path, method: str) -> None:
    """Saving refuses such numbers, and loading those that came into the file later."""
    drafter = getattr(folders, method)(deep)
    name, parameter = next(iter(drafter.named_parameters()))
    examples.spoilt(drafter, tmp_path / "d", lambda tensors: tensors[name].view(-1)[5].fill_(float("inf")))
    with pytest.raises(ModelError, match=f"not finite .*{name}"):
        load_drafter(tmp_path / "d", deep)
    refused(tmp_path / "d", deep, f"not finite .*{name}")
    parameter.data.view(-1)[5] = float("inf")
    with pytest.raises(ModelError, match=f"was not saved.*{name} holds 1 numbers that are NaN or infinite"):
        drafter.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
