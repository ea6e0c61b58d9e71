"""A Llama configuration as others write it -> the draft layer's sizes as ours has them, and back.

What a configuration leaves out is what transformers' LlamaConfig, and so vLLM, takes for it. Whatever would change
the layer's arithmetic and is not implemented is refused.
"""

from pathlib import Path
from typing import Any

from specdec.drafters.llama_layer import ROPE_TYPES, Dimensions
from specdec.errors import ModelError
from specdec.export.checkpoint import whole_number

# What a key must be, if it is there at all.
_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "logit_scale": (1.0, None),
}


def layer_sizes(config: dict[str, Any], where: Path) -> Dimensions:
    """config: a Llama's. where: the folder, for errors. Raises ModelError, naming the key."""
    for key, allowed in _ONLY.items():
        if key in config and config[key] not in allowed:
            raise ModelError(f"{where}/config.json: {key} is {config[key]!r}, which drafters here do not have")
    if "sliding_attention" in str(config.get("layer_types")):
        raise ModelError(
            f"{where}/config.json: layer_types asks for sliding windows, which drafters here do not have"
        )
    hidden = whole_number(config, "hidden_size", where)
    heads = whole_number(config, "num_attention_heads", where)
    kv_heads = whole_number(config, "num_key_value_heads", where, heads)
    if heads % kv_heads:
        raise ModelError(
            f"{where}/config.json: {heads} num_attention_heads are no multiple of {kv_heads} num_key_value_heads"
        )
    return Dimensions(
        hidden_size=hidden,
        intermediate_size=whole_number(config, "intermediate_size", where),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=whole_number(config, "head_dim", where, hidden // heads),
        rms_norm_eps=_positive(config, "rms_norm_eps", where, 1e-6),
        max_position_embeddings=whole_number(config, "max_position_embeddings", where, 2048),
        rope_parameters=_rope(config, where),
    )


def as_llama(config: dict[str, Any]) -> dict[str, Any]:
    """A drafter's `config.json` -> its Llama configuration as transformers wrote it before 5, and all versions read.

    The rotary settings lie in `rope_theta` and `rope_scaling`; whatever is no Llama's own is left out.
    """
    sizes = Dimensions.from_config(config).as_config()
    rope = dict(sizes.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    return {
        "model_type": "llama",
        **sizes,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "num_hidden_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": False,
    }


def _rope(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before, `rope_scaling` (perhaps null) stood beside `rope_theta`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise ModelError(f"{where}/config.json: rope_scaling is {found!r}, and must be an object")
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ModelError(
            f"{where}/config.json: rotary embeddings of type {kind!r}: known are {', '.join(ROPE_TYPES)}"
        )
    theta = _positive(found if found.get("rope_theta") is not None else config, "rope_theta", where, 10000.0)
    rest = {k: v for k, v in found.items() if k not in ("type", "rope_type", "rope_theta")}
    return {**rest, "rope_type": kind, "rope_theta": theta}


def _positive(config: dict[str, Any], key: str, where: Path, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"{where}/config.json: {key} is {value!r}, and must be a number above 0")
    return float(value)
