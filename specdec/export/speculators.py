"""EAGLE-3 as speculators saves it (https://github.com/vllm-project/speculators; read in 0.9.0, models/eagle3/).

`config.json`: `speculators_model_type`, `transformer_layer_config` (a Llama configuration), `draft_vocab_size`, the
norms, the auxiliary layers (counted as vLLM counts them) and, in `speculators_config`, the draft tokens. Weights:
vLLM's names, with an `embed_tokens` that is mostly the base's.
"""

from dataclasses import replace
from typing import Any

from specdec.drafters import Eagle3
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.eagle_modules import Eagle3Facts, default_aux_layers, eagle3, layer_ids
from specdec.targets import Target

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
        norm_before_residual=bool(config["norm_before_residual"]),
        norm_before_fc=bool(config.get("norm_before_fc")),
        fc_norm=bool(config.get("fc_norm")),
        norm_output=bool(config.get("norm_output")),
        draft_tokens=_draft_tokens(found),
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


LAYOUT = Layout("speculators", recognises, read)
