"""EAGLE-3 as speculators saves it (https://github.com/vllm-project/speculators; read in 0.9.0, models/eagle3/).

`config.json`: `speculators_model_type`, `transformer_layer_config` (a Llama configuration), `draft_vocab_size`, the
norms, the auxiliary layers (counted as vLLM counts them) and, in `speculators_config`, the draft tokens. Weights:
vLLM's names, with an `embed_tokens` that is mostly the base's.
"""

from dataclasses import replace
from typing import Any

from specdec.drafters import Drafter, Eagle3
from specdec.drafters.llama_layer import Dimensions
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.content import METHODS, Content, Paths, dtype_name, dtype_of
from specdec.export.eagle_modules import EMBEDDING, Eagle3Facts, default_aux_layers, eagle3, layer_ids, norms
from specdec.targets import Target

VERSION = "0.9.0"  # whose layout this is

_TRAINING_ALONE = ("verifier_lm_head.weight", "verifier_norm.weight")  # the base's, for the labels


def recognises(found: Checkpoint) -> bool:
    return "speculators_model_type" in found.config


def read(found: Checkpoint, target: Target) -> Eagle3:
    config, where = found.config, f"{found.folder}/config.json"
    if config["speculators_model_type"] != "eagle3":
        raise ModelError(
            f"{where}: speculators_model_type is {config['speculators_model_type']!r}, a method that is not known "
            "here: eagle3 is"
        )
    described = config.get("transformer_layer_config")
    if not isinstance(described, dict):
        raise ModelError(f"{where}: transformer_layer_config is missing")
    if described.get("model_type") != "llama":  # speculators' own default is qwen3, whose attention has further norms
        raise ModelError(
            f"{where}: the layers are {described.get('model_type') or 'qwen3'}'s: llama's are known here"
        )
    if "norm_before_residual" not in config:  # vLLM and speculators take different ones for it
        raise ModelError(f"{where}: norm_before_residual is missing")
    facts = Eagle3Facts(
        aux_layers=layer_ids(config.get("eagle_aux_hidden_state_layer_ids"), found.folder)
        or default_aux_layers(target),
        draft_tokens=_draft_tokens(found),
        **norms(config),
    )
    files = {name: file for name, file in found.files.items() if name not in _TRAINING_ALONE}
    return eagle3(replace(found, files=files), target, described, facts)


def _draft_tokens(found: Checkpoint) -> int:
    """Of the first way to propose, as vLLM takes it."""
    try:
        first: dict[str, Any] = found.config["speculators_config"]["proposal_methods"][0]
        first = {"speculative_tokens": first["speculative_tokens"]}
    except (KeyError, IndexError, TypeError):
        raise ModelError(
            f"{found.folder}/config.json: speculators_config.proposal_methods[0].speculative_tokens is missing"
        ) from None
    return whole_number(first, "speculative_tokens", found.folder)


def write(drafter: Drafter, paths: Paths) -> Content:
    if not isinstance(drafter, Eagle3):
        raise ModelError(
            f"speculators' layout is EAGLE-3's, and this drafter is {METHODS[drafter.method]}: serve it with vLLM"
        )
    own = drafter.checkpoint_config()
    if own["hidden_size"] != own["target_hidden_size"]:
        raise ModelError(
            f"speculators knows no module of a width of its own, and this one's is {own['hidden_size']} beside the "
            f"base's {own['target_hidden_size']}: serve it with vLLM"
        )
    if own["fc_norm"] and own["norm_before_fc"]:
        raise ModelError("speculators refuses fc_norm beside norm_before_fc: serve it with vLLM")
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": drafter.draft_tokens}],
            "verifier": {"name_or_path": paths.base, "architectures": _architectures(drafter.target)},
        },
        "transformer_layer_config": _layer(own),
        "draft_vocab_size": own["draft_vocab_size"],
        "target_hidden_size": own["target_hidden_size"],
        "eagle_aux_hidden_state_layer_ids": own["eagle_aux_hidden_state_layer_ids"],
        "embed_requires_grad": False,
        "torch_dtype": dtype_name(drafter),
        **norms(own),
    }
    embedding = drafter.target.embedding_weight.to(dtype_of(drafter))
    return Content(config, {EMBEDDING: embedding, **drafter.checkpoint_tensors()})


def _architectures(target: Target) -> list[str]:
    return list(target.model.config.architectures or [type(target.model).__name__])


def _layer(own: dict[str, Any]) -> dict[str, Any]:
    """The Llama configuration as transformers 5 writes it."""
    return {
        "model_type": "llama",
        **Dimensions.from_config(own).as_config(),
        "num_hidden_layers": own["num_hidden_layers"],
        "vocab_size": own["vocab_size"],
        "tie_word_embeddings": False,
    }


LAYOUT = Layout("speculators", "speculators", recognises, read, write)
