"""The sizes of a draft layer and the layers that it reads: the base's own unless the settings say otherwise."""

from typing import Any

import torch
from torch import Tensor

from specdec.config import DimensionSettings
from specdec.drafters.llama_layer import LONGEST, ROPE_TYPES, Dimensions
from specdec.errors import ConfigError
from specdec.targets import Target


def draft_dimensions(target: Target, chosen: DimensionSettings) -> Dimensions:
    """Raises ConfigError, naming the setting, for sizes that do not go together."""
    base = target.text_config
    hidden = chosen.hidden_size or target.hidden_size
    heads = chosen.num_attention_heads or base.num_attention_heads
    kv_heads = chosen.num_key_value_heads or min(heads, getattr(base, "num_key_value_heads", None) or heads)
    own = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
    head_dim = chosen.head_dim or (own if chosen.hidden_size is None else max(2, hidden // heads))
    if heads % kv_heads:
        raise ConfigError(
            f"dimensions: {heads} num_attention_heads are no multiple of {kv_heads} num_key_value_heads"
        )
    if hidden % heads:  # transformers' LlamaConfig refuses it, whatever head_dim says, and so does vLLM
        raise ConfigError(f"dimensions: hidden_size {hidden} is no multiple of {heads} num_attention_heads")
    if head_dim % 2:
        raise ConfigError(f"dimensions.head_dim is {head_dim}, and rotary embeddings need an even number")
    return Dimensions(
        hidden_size=hidden,
        intermediate_size=chosen.intermediate_size or getattr(base, "intermediate_size", None) or 4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(getattr(base, "rms_norm_eps", None) or 1e-6),
        max_position_embeddings=chosen.max_position_embeddings or min(target.max_positions, LONGEST),
        rope_parameters=_rope(base, chosen.rope_theta),
    )


def default_aux_layers(num_layers: int) -> tuple[int, ...]:
    """Low, middle and high, always distinct: (2, L/2, L) where the base is deep enough.

    High is the last layer, before the final norm: the state that already knows the next token.
    """
    if num_layers == 1:
        return (0, 1)
    low = min(2, num_layers - 2)
    return (low, max(low + 1, min(num_layers // 2, num_layers - 1)), num_layers)


def _rope(base: Any, theta: float | None) -> dict[str, Any]:
    """The base's own where its angles depend on the position alone, a plain one of the same period elsewhere.

    Partial rotary is not taken over: vLLM's draft layers turn whole heads.
    """
    found = dict(getattr(base, "rope_parameters", None) or {})
    if "full_attention" in found:  # one set a kind of layer
        found = dict(found["full_attention"])
    found.pop("partial_rotary_factor", None)
    period = theta or found.get("rope_theta") or 10000.0
    if theta or found.get("rope_type", "default") not in ROPE_TYPES:
        return {"rope_type": "default", "rope_theta": float(period)}
    return {**found, "rope_type": found.get("rope_type", "default"), "rope_theta": float(period)}


def projection(weight: Tensor, size: int) -> Tensor:
    """weight[V, H] -> the [size, H] orthonormal directions in which its rows vary most (identity rows when wider)."""
    rows = weight.float().cpu()
    if size >= rows.shape[1]:
        return torch.eye(size, rows.shape[1])
    _, vectors = torch.linalg.eigh(rows.T @ rows)  # ascending
    return vectors[:, -size:].T.flip(0).contiguous()
