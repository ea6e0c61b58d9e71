"""EAGLE-3 as SGLang and TensorRT-LLM load it, which is as ModelOpt exports it (`modelopt.py`): `midlayer.` for
`layers.0.`, auxiliary layers counted from 0, no `t2d`.

Read in SGLang 0.5.23 (srt/models/llama_eagle3.py, srt/speculative/) and in TensorRT-LLM's sources of 2026
(_torch/models/modeling_speculative.py, _torch/speculative/eagle3.py). Both pass over what they do not know, as vLLM
does: whatever would be computed in another way is refused here.
"""

from typing import Any

from torch import Tensor

from specdec.drafters import Drafter, Eagle3
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint
from specdec.export.content import METHODS, dtype_name
from specdec.export.eagle_modules import Eagle3Facts, default_aux_layers, eagle3, layer_ids, norms
from specdec.export.llama_config import as_llama
from specdec.targets import Target

_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_MODELOPT = {
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
}


def eagle3_folder(drafter: Drafter, engine: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(`config.json`, tensors). Raises ModelError for a module that the engine would compute in another way."""
    config, tensors = drafter.checkpoint_config(), drafter.checkpoint_tensors()
    _check_module(config, engine)
    said = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **as_llama(config),
        "torch_dtype": dtype_name(drafter),
        "draft_vocab_size": config["draft_vocab_size"],
        "target_hidden_size": config["target_hidden_size"],
        "num_aux_hidden_states": len(drafter.aux_layers),
        **norms(config),
        "eagle_config": {
            _LAYER_IDS: counted_from_0(drafter.aux_layers),
            "use_aux_hidden_state": True,
            "norm_before_fc": config["norm_before_fc"],
            **_MODELOPT,
        },
    }
    named = {n.replace("layers.0.", "midlayer.", 1): t for n, t in tensors.items() if n != "t2d"}
    return said, named


def counted_from_0(aux_layers: tuple[int, ...]) -> list[int]:
    """Ours are outputs of layer i-1."""
    return [i - 1 for i in aux_layers]


def read_eagle3(found: Checkpoint, target: Target) -> Eagle3:
    """EAGLE-3 as the engines mean it, with or without ModelOpt's own keys (SpecForge writes none of them)."""
    nested = found.config.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    counted = layer_ids(nested.get(_LAYER_IDS), found.folder)
    layers = tuple(i + 1 for i in counted) or default_aux_layers(target)
    return eagle3(found, target, found.config, Eagle3Facts(aux_layers=layers, **norms(found.config, nested)))


def refuse(drafter: Drafter, engine: str, takes: str) -> ModelError:
    """For a drafter of a method that the engine does not know."""
    return ModelError(f"{engine} takes {takes}, and this drafter is {METHODS[drafter.method]}: serve it with vLLM")


def _check_module(config: dict[str, Any], engine: str) -> None:
    width, read = config["hidden_size"], config["target_hidden_size"]
    layers = config[_LAYER_IDS]
    for cannot, why in (
        (config["norm_before_residual"], "adds up the state before its norm, and here norm_before_residual is true"),
        (
            config["num_hidden_layers"] > 1,
            f"names further layers otherwise, and here are {config['num_hidden_layers']} layers",
        ),
        (
            config.get("own_embed_tokens") and width == read,
            "takes the base's embedding, and here is one of the module's own",
        ),
        (0 in layers, f"counts the outputs of layers, and here aux_layers {layers} ask for the embeddings (0)"),
        (
            len(layers) * read == width,
            f"knows states that are to be fused by their width, and here they are as wide as the module ({width})",
        ),
    ):
        if cannot:
            raise ModelError(f"{engine} {why}: train it otherwise for {engine}, or serve it with vLLM")
