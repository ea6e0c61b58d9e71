"""The decoder layer of which EAGLE's modules are made: Llama's, with the tensor names that vLLM loads.

All tensors are flat: rows [N, ...] of any documents. What a row attends to is the caller's business
(`specdec.drafters.unrolled`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specdec.errors import ModelError

ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone


LONGEST = 2**20  # positions of a base that names no limit


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a draft layer, by the names of a Llama `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_parameters: dict[str, Any]

    def as_config(self) -> dict[str, Any]:
        """The part of `config.json` that describes the layer."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": self.rope_parameters,
            "rope_theta": self.rope_parameters["rope_theta"],
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Dimensions":
        """What `as_config` wrote. Raises ModelError when a size is missing."""
        try:
            return cls(**{name: config[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise ModelError(f"config.json describes no draft layer: {error.args[0]} is missing") from None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Projections of grouped-query attention; `input_size` is 2H where embedding and state come in side by side."""

    def __init__(self, sizes: Dimensions, input_size: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            sizes.num_attention_heads,
            sizes.num_key_value_heads,
            sizes.head_dim,
        )
        self.q_proj = nn.Linear(input_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(input_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(input_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, sizes.hidden_size, bias=False)

    def query(self, x: Tensor) -> Tensor:
        """x[N, I] -> [N, heads, D], not rotated."""
        return self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x[N, I] -> keys (not rotated) and values, [N, kv_heads, D] each."""
        shape = (self.kv_heads, self.head_dim)
        return self.k_proj(x).unflatten(-1, shape), self.v_proj(x).unflatten(-1, shape)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, sizes: Dimensions):
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate_size, sizes.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module, ABC):
    """A decoder layer in two halves, between which the caller attends: `enter`, then `leave`."""

    def __init__(self, sizes: Dimensions, input_size: int):
        super().__init__()
        self.self_attn = Attention(sizes, input_size)
        self.post_attention_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.mlp = MLP(sizes)

    @abstractmethod
    def enter(self, state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """state[N, H], embedding[N, H] of the next token -> (input of the attention [N, I], residual [N, H])."""

    def leave(self, residual: Tensor, attended: Tensor) -> Tensor:
        """residual[N, H], attended[N, heads * D] -> the layer's output [N, H]."""
        state = residual + self.self_attn.o_proj(attended)
        return state + self.mlp(self.post_attention_layernorm(state))


class Rotary:
    """Rotary position embedding; angles of all positions are tabled once. transformers knows the scalings.

    No module: its tables are neither weights nor buffers, which processes would send each other in every step.
    """

    def __init__(self, sizes: Dimensions, length: int):
        """length: positions that come up; the base's, even where the drafter's own context is said to be shorter."""
        config = LlamaConfig(
            hidden_size=sizes.hidden_size,
            num_attention_heads=sizes.num_attention_heads,
            head_dim=sizes.head_dim,
            max_position_embeddings=sizes.max_position_embeddings,
            rope_parameters=dict(sizes.rope_parameters),
        )
        with torch.device("cpu"):
            cos, sin = LlamaRotaryEmbedding(config)(torch.empty(1), torch.arange(length)[None])
        self.length = length
        self._tables = (cos[0], sin[0])

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x[N, heads, D] turned to positions[N]."""
        if self._tables[0].device != x.device:
            self._tables = (self._tables[0].to(x.device), self._tables[1].to(x.device))
        cos, sin = (table[positions][:, None].to(x.dtype) for table in self._tables)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin
