"""A drafter of ours, written by hand as others lay it out: their `config.json`, their tensor names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from specdec.drafters import Drafter, Eagle3, Medusa
from specdec.targets import Target
from tests.drafters.examples import new, scattered
from tests.settings import eagle3_settings, eagle_settings

Folder = tuple[dict[str, Any], dict[str, Tensor]]  # config.json, tensors


def write(folder: Path, laid_out: Folder) -> Path:
    config, tensors = laid_out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def medusa(target: Target, num_layers: int = 2, shared: bool = False, bias: bool = True) -> Medusa:
    heads: Medusa = scattered(Medusa(target, 3, num_layers, shared, bias=bias))
    return heads


def eagle(target: Target, **own: Any) -> Drafter:
    return new(target, eagle_settings(own))


def eagle3(target: Target, draft_vocab_size: int | None = 60, **own: Any) -> Drafter:
    counts = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(4))
    made: Drafter = new(target, eagle3_settings({"draft_vocab_size": draft_vocab_size, **own}), counts)
    assert isinstance(made, Eagle3)
    made.fc.weight.data *= 0.02  # so that tokens matter beside the states, and drafts differ
    return made


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {n.replace(old, new, 1) if n.startswith(old) else n: t for n, t in tensors.items()}


# ------------------------------------------------------------------ Medusa


def _sequential(heads: Medusa, prefix: str) -> dict[str, Tensor]:
    """The state of a ModuleList of Sequential(ResBlock, ..., Linear)."""
    found = {}
    for i, block in enumerate(heads.blocks):
        for j, layer in enumerate(block.layers):
            found[f"{prefix}{i}.{j}.linear.weight"] = layer.weight.detach()
            found[f"{prefix}{i}.{j}.linear.bias"] = layer.bias.detach()
        found[f"{prefix}{i}.{heads.num_layers}.weight"] = heads.output_weights[i].detach()
    return found


def medusa_original(heads: Medusa, prefix: str = "") -> Folder:
    config = {
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
        "medusa_num_heads": heads.num_heads,
        "medusa_num_layers": heads.num_layers,
        "transformers_version": "4.31.0",
    }
    return config, _sequential(heads, prefix)


def medusa_modelopt(heads: Medusa) -> Folder:
    """The heads stand in the base's own checkpoint."""
    model = heads.target.model
    config = model.config.to_dict()
    config["medusa"] = {"num_medusa_heads": heads.num_heads, "num_medusa_layers": heads.num_layers}
    return json.loads(json.dumps(config, default=str)), {**model.state_dict(), **_sequential(heads, "medusa_heads.")}


def medusa_vllm(heads: Medusa) -> Folder:
    return heads.checkpoint_config(), heads.checkpoint_tensors()


# ------------------------------------------------------------------ EAGLE


def llama(drafter: Drafter) -> dict[str, Any]:
    """A Llama configuration of the time before transformers 5, without what only ours says."""
    config = drafter.checkpoint_config()
    named = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
        "max_position_embeddings", "rope_theta", "hidden_act", "num_hidden_layers", "vocab_size",
    )  # fmt: skip
    return {"model_type": "llama", "rope_scaling": None, **{name: config[name] for name in named}}


def eagle_vllm(drafter: Drafter) -> Folder:
    """As SafeAILab publishes it: with a copy of the base's embedding."""
    embedding = {"embed_tokens.weight": drafter.target.embedding_weight}
    config = {"architectures": ["LlamaForCausalLM"], **llama(drafter)}
    return config, {**drafter.checkpoint_tensors(), **embedding}


def eagle3_vllm(drafter: Drafter) -> Folder:
    """As SafeAILab publishes it: `midlayer`, and nothing said of the auxiliary layers, which are (2, L/2, L-3)."""
    config = {"architectures": ["LlamaForCausalLMEagle3"], **llama(drafter)}
    config["draft_vocab_size"] = drafter.checkpoint_config()["draft_vocab_size"]
    return config, renamed(drafter.checkpoint_tensors(), "layers.0.", "midlayer.")


def eagle3_speculators(drafter: Drafter) -> Folder:
    """transformers 5 writes its rotary settings as one object."""
    own = drafter.checkpoint_config()
    layer = llama(drafter)
    layer["rope_parameters"] = {"rope_type": "default", "rope_theta": layer.pop("rope_theta")}
    del layer["rope_scaling"]
    norms = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4}],
            "verifier": {"name_or_path": "some/base", "architectures": ["LlamaForCausalLM"]},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": own["draft_vocab_size"],
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": own["eagle_aux_hidden_state_layer_ids"],
        "embed_requires_grad": False,
        **{name: own[name] for name in norms},
    }
    return config, {**drafter.checkpoint_tensors(), "embed_tokens.weight": drafter.target.embedding_weight}


def eagle3_modelopt(drafter: Drafter, old: bool = False) -> Folder:
    """old: `midlayer`. The auxiliary layers are counted from 0, and `t2d` is not written."""
    own = drafter.checkpoint_config()
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **llama(drafter),
        "draft_vocab_size": own["draft_vocab_size"],
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": None,
        "rope_scaling": {"rope_type": "default", "rope_theta": own["rope_theta"]},
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [i - 1 for i in own["eagle_aux_hidden_state_layer_ids"]],
            "use_aux_hidden_state": True,
            "use_input_layernorm_in_first_layer": True,
            "use_last_layernorm": True,
            "use_mtp_layernorm": False,
            "next_layer_regular": True,
            "parallel_draft_step": 1,
            "parallel_draft_heads_num_layers": 1,
        },
    }
    tensors = {n: t for n, t in drafter.checkpoint_tensors().items() if n != "t2d"}
    return config, renamed(tensors, "layers.0.", "midlayer.") if old else tensors


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def changed(laid_out: Folder, change: Change) -> Folder:
    change(*laid_out)
    return laid_out
