"""EAGLE: what it takes from the base, its settings, and its checkpoint as vLLM loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import GraniteConfig, GraniteForCausalLM

from specdec.drafters import DraftState, Eagle, load_drafter, new_drafter
from specdec.errors import ConfigError, ModelError
from specdec.targets import Target
from tests.drafters.examples import (
    anchors,
    assert_same,
    cut,
    documents,
    gradients,
    new,
    observed,
    packed,
    saved_again,
    spoilt,
    without,
)
from tests.drafters.reference import Reference
from tests.settings import eagle_settings
from tests.tiny import write_base, write_tokenizer

LAYER = {
    "post_attention_layernorm.weight": (64,),
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.k_proj.weight": (32, 64),
    "self_attn.v_proj.weight": (32, 64),
    "self_attn.o_proj.weight": (64, 64),
    "mlp.gate_proj.weight": (96, 64),
    "mlp.up_proj.weight": (96, 64),
    "mlp.down_proj.weight": (64, 96),
}


def drafter_of(target: Target, **own: Any) -> Eagle:
    made = new(target, eagle_settings(own))
    assert isinstance(made, Eagle)
    return made


def test_a_fresh_drafter_passes_the_bases_last_state_on(target: Target) -> None:
    prompt = torch.tensor([[1, 4, 30, 41, 52]])
    with torch.no_grad():
        read = target.forward(prompt)
    said = target.logits(read.hidden[0]).argmax(-1)
    state = DraftState()
    state.observe(torch.cat([prompt[0, 1:], said[-1:]]), read.hidden[0], None)
    torch.manual_seed(0)
    assert new_drafter(target, eagle_settings()).propose(state, 1).token_ids.tolist() == said[-1:].tolist()


def test_the_bases_weights_are_not_the_drafters(target: Target) -> None:
    drafter = drafter_of(target)
    before = target.output_weight.clone(), target.embedding_weight.clone()
    gradients(drafter, packed(documents(target)))
    assert target.output_weight.grad is None
    assert target.embedding_weight.grad is None
    assert torch.equal(before[0], target.output_weight)
    assert not any(p is target.output_weight or p is target.embedding_weight for p in drafter.parameters())


def test_the_scale_of_the_bases_logits_is_kept(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {n: getattr(tokenizer, n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = GraniteConfig(vocab_size=len(tokenizer), logits_scaling=4.0, initializer_range=0.2, **sizes, **ends)
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    scaled = Target.from_pretrained(tmp_path, device="cpu")
    drafter = drafter_of(scaled, unroll_steps=1, feature_weight=0.0)
    assert drafter.checkpoint_config()["logit_scale"] == 0.25
    made = documents(scaled)
    reference = Reference(drafter)
    places = [(d, t, reference.chain(d, t, 1, forced=True)[0][0]) for d in made for t in anchors(d, 0)]
    wanted = torch.stack([reference.loss(d, t, 0, said, "kl") for d, t, said in places]).mean()
    assert_same(gradients(drafter, packed(made))[:1], [wanted.detach()])


def test_noise_is_for_training_alone(target: Target) -> None:
    drafter, plain = drafter_of(target, input_noise=0.5), drafter_of(target)
    features = packed(documents(target))
    wanted = plain.loss(features).loss
    losses = {drafter.loss(features).loss.item() for _ in range(2)}
    assert len(losses | {wanted.item()}) == 3
    with torch.no_grad():
        assert torch.equal(drafter.loss(features).loss, wanted)
    assert torch.equal(drafter.eval().loss(features).loss, wanted)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 num_attention_heads are no multiple of 3"),
        ({"num_attention_heads": 3}, "hidden_size 64 is no multiple of 3 num_attention_heads"),
        ({"head_dim": 7}, "head_dim is 7, and rotary embeddings need an even number"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(target: Target, own: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        new_drafter(target, eagle_settings({"dimensions": own}))
    assert "\n" not in str(caught.value)


def test_a_width_of_its_own_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden_size must be null"):
        eagle_settings({"dimensions": {"hidden_size": 32}})


@pytest.mark.parametrize("count", [1, 2])
def test_the_checkpoint_is_what_vllm_loads(target: Target, tmp_path: Path, count: int) -> None:
    drafter_of(target, num_layers=count).save_pretrained(tmp_path / "d")
    tensors = load_file(tmp_path / "d" / "model.safetensors")
    wanted: dict[str, tuple[int, ...]] = {"fc.weight": (64, 128)}
    for i in range(count):
        wanted |= {f"layers.{i}.{name}": shape for name, shape in LAYER.items()}
        if i > 0:
            wanted[f"layers.{i}.input_layernorm.weight"] = (64,)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == wanted
    assert not {"layers.0.input_layernorm.weight", "norm.weight", "lm_head.weight", "embed_tokens.weight"} & set(
        tensors
    )
    assert all(t.dtype is torch.float32 for t in tensors.values())


def test_the_configuration_is_what_vllm_reads(target: Target, tmp_path: Path) -> None:
    own = {"num_layers": 2, "dimensions": {"rope_theta": 500, "intermediate_size": 40, "max_position_embeddings": 99}}
    drafter_of(target, **own).save_pretrained(tmp_path / "d")
    assert json.loads((tmp_path / "d" / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 40,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 99,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "rope_theta": 500.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": 2,
        "vocab_size": 262,
        "tie_word_embeddings": False,
    }


def test_a_saved_drafter_drafts_the_same(target: Target, tmp_path: Path) -> None:
    drafter = drafter_of(target, num_layers=2, draft_tokens=4)
    loaded = saved_again(drafter, tmp_path)
    assert loaded.draft_tokens == 4
    for document in documents(target):
        drafts = drafter.propose(observed(document, len(document) - 1), 5).token_ids
        assert len(drafts) == 5
        assert torch.equal(drafts, loaded.propose(observed(document, len(document) - 1), 5).token_ids)


def renamed(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.weight"), r"fc\.weight: missing, wanted \(64, 128\)"),
        (cut("layers.0.mlp.up_proj.weight"), r"layers\.0\.mlp\.up_proj\.weight: \(95, 64\), wanted \(96, 64\)"),
        (
            lambda t: t.update({"layers.0.input_layernorm.weight": torch.ones(64)}),
            r"input_layernorm\.weight: .* none",
        ),
        (renamed, r"fc\.weight: missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(target: Target, tmp_path: Path, change: Any, message: str) -> None:
    spoilt(drafter_of(target), tmp_path / "d", change)
    with pytest.raises(ModelError, match=message) as caught:
        load_drafter(tmp_path / "d", target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["num_hidden_layers", "rms_norm_eps"])
def test_a_configuration_that_lacks_something_is_refused(target: Target, tmp_path: Path, name: str) -> None:
    drafter_of(target).save_pretrained(tmp_path / "d")
    path = tmp_path / "d" / "config.json"
    path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n != name}))
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load_drafter(tmp_path / "d", target)


def test_another_base_is_refused(target: Target, tmp_path: Path) -> None:
    drafter_of(target).save_pretrained(tmp_path / "d")
    write_base(tmp_path / "other", seed=5)
    other = Target.from_pretrained(tmp_path / "other", device="cpu")
    with pytest.raises(ModelError, match=r"for another base: its weights \(\w+\) differ from those of "):
        load_drafter(tmp_path / "d", other)
    load_drafter(tmp_path / "d", other, force=True)
