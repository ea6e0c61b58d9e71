"""EAGLE-3: its draft vocabulary, what it takes from the base, its settings, and its checkpoint as vLLM loads it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from specdec.drafters import Eagle3, load_drafter, new_drafter
from specdec.drafters.dimensions import default_aux_layers
from specdec.errors import ConfigError, ModelError
from specdec.targets import Target
from tests.drafters.examples import cut, documents, moved, new, observed, saved_again, spoilt, without
from tests.drafters.reference import Reference
from tests.settings import eagle3_settings
from tests.tiny import write_base

LAYERS = (0, 1, 2)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"fc_norm": True, "loss": "cross_entropy"},
    {"norm_output": True},
    {"norm_before_residual": True, "dimensions": {"rope_theta": 50.0, "num_key_value_heads": 2}},
    {"draft_vocab_size": 60, "dimensions": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 40}},
    {"draft_vocab_size": 60, "loss": "cross_entropy", "aux_layers": [1]},
]


def token_counts(target: Target) -> Tensor:
    """Token i was answered i times, save the last fifty, which never were."""
    counts = torch.arange(target.vocab_size)
    counts[-50:] = 0
    return counts


def drafter_of(target: Target, **own: Any) -> Eagle3:
    made = new(target, eagle3_settings(own), token_counts(target))
    assert isinstance(made, Eagle3)
    return made


def test_the_draft_vocabulary_holds_what_the_base_answers_and_what_ends_it(target: Target) -> None:
    counts = token_counts(target)
    assert target.stop_ids == {2}
    drafter = drafter_of(target, draft_vocab_size=20)
    frequent = list(range(target.vocab_size - 50 - 19, target.vocab_size - 50))
    assert drafter.vocabulary is not None
    assert drafter.vocabulary.to_target.tolist() == [2, *frequent]
    assert (drafter.d2t + torch.arange(20)).tolist() == [2, *frequent]
    assert drafter.t2d.nonzero().squeeze(-1).tolist() == [2, *frequent]
    fresh = new_drafter(target, eagle3_settings({"draft_vocab_size": 20}), counts)
    assert isinstance(fresh, Eagle3)
    assert counts.equal(token_counts(target)), "the counts are the caller's"
    assert torch.equal(fresh.lm_head.weight, target.output_weight[[2, *frequent]])
    drafts = drafter.propose(observed(documents(target, LAYERS)[0], 5), 3).token_ids
    assert set(drafts.tolist()) <= {2, *frequent}


def test_a_whole_vocabulary_needs_no_mapping(target: Target) -> None:
    drafter = drafter_of(target, draft_vocab_size=target.vocab_size)
    assert drafter.vocabulary is None
    assert "d2t" not in drafter.checkpoint_tensors()


@pytest.mark.parametrize("count", range(1, 65))
def test_default_layers_are_distinct_and_the_bases(count: int) -> None:
    layers = default_aux_layers(count)
    assert list(layers) == sorted(set(layers))
    assert layers[0] >= 0
    assert layers[-1] <= count
    assert len(layers) == min(3, count + 1)
    if count >= 8:
        assert layers == (2, count // 2, count)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"aux_layers": [0, 3]}, r"aux_layers \[0, 3\]: .* layers 1 to 2"),
        ({"aux_layers": [-1, 1]}, r"aux_layers \[-1, 1\]: "),
        ({"aux_layers": []}, r"aux_layers \[\]: "),
        ({"aux_layers": [1, 1]}, "each once, in ascending order"),
        ({"aux_layers": [2, 1]}, "each once, in ascending order"),
        ({"draft_vocab_size": 999}, "draft_vocab_size is 999, and tiny-llama has 262 tokens"),
        (
            {"dimensions": {"num_attention_heads": 4, "num_key_value_heads": 3}},
            "4 num_attention_heads are no multiple",
        ),
        ({"dimensions": {"hidden_size": 50, "num_attention_heads": 4}}, "hidden_size 50 is no multiple of 4"),
        ({"dimensions": {"head_dim": 7}}, "head_dim is 7, and rotary embeddings need an even number"),
    ],
)
def test_bad_settings_are_refused_in_one_line(target: Target, own: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        new_drafter(target, eagle3_settings(own), token_counts(target))
    assert "\n" not in str(caught.value)


def test_a_draft_vocabulary_needs_counts(target: Target) -> None:
    with pytest.raises(ConfigError, match="draft_vocab_size needs the counts"):
        new_drafter(target, eagle3_settings({"draft_vocab_size": 20}))


def test_a_fresh_drafter_speaks_as_the_base_and_its_layer_adds_nothing(target: Target) -> None:
    drafter = new_drafter(target, eagle3_settings())
    assert isinstance(drafter, Eagle3)
    assert torch.equal(drafter.lm_head.weight, target.output_weight)
    assert target.final_norm_weight is not None
    assert torch.equal(drafter.norm.weight, target.final_norm_weight)
    states = torch.randn(5, target.hidden_size)
    fused = drafter.first_states(states, torch.randn(5, 3 * target.hidden_size))
    attend = lambda _i, layer, inputs: torch.randn(5, layer.self_attn.o_proj.in_features)  # noqa: E731
    assert torch.equal(drafter.run_layers(fused, drafter.embed(torch.arange(5)), attend), fused)


def test_the_bases_rotary_scaling_is_taken_over(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    write_base(tmp_path / "scaled", rope_parameters=rope)
    scaled = Target.from_pretrained(tmp_path / "scaled", device="cpu")
    drafter = drafter_of(scaled)
    assert drafter.checkpoint_config()["rope_parameters"] == rope
    document = documents(scaled, LAYERS)[0]
    drafts = drafter.propose(observed(document, 6), 3).token_ids.tolist()
    assert drafts == Reference(drafter).chain(document, 5, 3, forced=False)[1]


LAYER = {
    "layers.0.input_layernorm.weight": (64,),
    "layers.0.hidden_norm.weight": (64,),
    "layers.0.post_attention_layernorm.weight": (64,),
    "layers.0.self_attn.q_proj.weight": (64, 128),
    "layers.0.self_attn.k_proj.weight": (32, 128),
    "layers.0.self_attn.v_proj.weight": (32, 128),
    "layers.0.self_attn.o_proj.weight": (64, 64),
    "layers.0.mlp.gate_proj.weight": (96, 64),
    "layers.0.mlp.up_proj.weight": (96, 64),
    "layers.0.mlp.down_proj.weight": (64, 96),
    "norm.weight": (64,),
    "fc.weight": (64, 192),
}


@pytest.mark.parametrize(
    ("own", "further"),
    [
        ({}, {"lm_head.weight": (262, 64)}),
        ({"draft_vocab_size": 50}, {"lm_head.weight": (50, 64), "d2t": (50,), "t2d": (262,)}),
        ({"fc_norm": True}, {"lm_head.weight": (262, 64)} | {f"fc_norm.{i}.weight": (64,) for i in range(3)}),
    ],
)
def test_the_checkpoint_is_what_vllm_loads(target: Target, tmp_path: Path, own: Any, further: Any) -> None:
    drafter_of(target, **own).save_pretrained(tmp_path / "d")
    tensors = load_file(tmp_path / "d" / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == LAYER | further
    integers = {"d2t": torch.int64, "t2d": torch.bool}
    assert all(t.dtype is integers.get(name, torch.float32) for name, t in tensors.items())


def test_the_configuration_is_what_vllm_reads(target: Target, tmp_path: Path) -> None:
    own = {"draft_vocab_size": 50, "aux_layers": [0, 2], "norm_output": True, "dimensions": {"hidden_size": 32}}
    drafter = drafter_of(target, **own)
    drafter.save_pretrained(tmp_path / "d")
    assert json.loads((tmp_path / "d" / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": 1,
        "vocab_size": 262,
        "draft_vocab_size": 50,
        "target_hidden_size": 64,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": True,
        "eagle_aux_hidden_state_layer_ids": [0, 2],
        "num_aux_hidden_states": 2,
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [0, 2]},
        "tie_word_embeddings": False,
    }
    shapes = {name: tuple(t.shape) for name, t in drafter.checkpoint_tensors().items()}
    assert shapes["fc.weight"] == (32, 128)
    assert shapes["embed_tokens.weight"] == (262, 32)


@pytest.mark.parametrize("own", OPTIONS)
def test_a_saved_drafter_drafts_the_same(target: Target, tmp_path: Path, own: Any) -> None:
    drafter = drafter_of(target, draft_tokens=2, **own)
    loaded = saved_again(drafter, tmp_path)
    assert loaded.aux_layers == drafter.aux_layers
    assert loaded.draft_tokens == 2
    for document in documents(target, drafter.aux_layers):
        drafts = drafter.propose(observed(document, len(document) - 1), 3).token_ids
        assert len(drafts) == 3
        assert torch.equal(drafts, loaded.propose(observed(document, len(document) - 1), 3).token_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("norm.weight"), r"norm\.weight: missing, wanted \(64,\)"),
        (without("d2t"), "d2t: missing"),
        (cut("lm_head.weight"), r"lm_head\.weight: \(49, 64\), wanted \(50, 64\)"),
        (moved("d2t"), "d2t and t2d name different draft vocabularies"),
        (moved("t2d"), "d2t and t2d name different draft vocabularies"),
        (lambda t: t.update(spare=torch.ones(1)), r"spare: \(1,\), wanted none"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(target: Target, tmp_path: Path, change: Any, message: str) -> None:
    spoilt(drafter_of(target, draft_vocab_size=50), tmp_path / "d", change)
    with pytest.raises(ModelError, match=message) as caught:
        load_drafter(tmp_path / "d", target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["draft_vocab_size", "eagle_config", "head_dim"])
def test_a_configuration_that_lacks_something_is_refused(target: Target, tmp_path: Path, name: str) -> None:
    drafter_of(target).save_pretrained(tmp_path / "d")
    path = tmp_path / "d" / "config.json"
    path.write_text(json.dumps({n: v for n, v in json.loads(path.read_text()).items() if n != name}))
    with pytest.raises(ModelError, match=f"{name} is missing"):
        load_drafter(tmp_path / "d", target)
