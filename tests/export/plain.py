"""Medusa and EAGLE-3 folders of others, computed from their formats' descriptions with nothing but torch.

Whole sequences, no cache, no code of the library: what the base says comes from transformers' model itself.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu


def folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")


def layer_outputs(model: Any, ids: list[int]) -> tuple[list[Tensor], Tensor]:
    """(outputs [T, H] of each decoder layer, the state [T, H] after the final norm)."""
    heard: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: heard.append((out[0] if isinstance(out, tuple) else out)[0]))
        for layer in model.model.layers
    ]
    final = model.model(torch.tensor([ids])).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return [h.reshape(len(ids), -1) for h in heard], final


def medusa(weights: dict[str, Tensor], prefix: str, num_heads: int, num_layers: int, state: Tensor) -> list[Tensor]:
    """The logits [V] of each head behind the base's state [H]."""
    logits = []
    for i in range(num_heads):
        x = state
        for j in range(num_layers):
            name = f"{prefix}{i}.{j}.linear"
            x = x + silu(weights[f"{name}.weight"] @ x + weights[f"{name}.bias"])
        logits.append(weights[f"{prefix}{i}.{num_layers}.weight"] @ x)
    return logits


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, theta: float, factor: float = 1.0) -> Tensor:
    """x[heads, T, D]: pairs (i, i + D/2) of position t turn by t / theta^(2i/D)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] / factor * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def attention(w: dict[str, Tensor], name: str, x: Tensor, sizes: dict[str, Any], rope: tuple[float, float]) -> Tensor:
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    q, k, v = ((x @ w[f"{name}.{p}_proj.weight"].T).view(len(x), n, -1).transpose(0, 1)
               for p, n in (("q", heads), ("k", groups), ("v", groups)))  # fmt: skip
    q, k = turned(q, *rope), turned(k, *rope)
    k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
    return mixed @ w[f"{name}.o_proj.weight"].T


def eagle3_chain(
    sizes: dict[str, Any],
    facts: dict[str, Any],
    weights: dict[str, Tensor],
    embedding: Tensor,
    auxiliary: Tensor,
    tokens: list[int],
    count: int,
) -> list[Tensor]:
    """Logits [Vd] of `count` draft positions behind auxiliary[T, A*H], where tokens[T] are the next ones of each.

    sizes: the Llama configuration. facts: `norm_before_residual`, `fc_norm`, `norm_output`, `norm_before_fc`, and
    `rope` (theta, linear factor). weights: by the names `layers.0.`, `fc`, `norm`, `lm_head`, `d2t`.
    """
    eps = sizes["rms_norm_eps"]
    if facts.get("norm_before_fc"):
        auxiliary = rms(auxiliary, weights["input_norm.weight"], eps)
    if facts.get("fc_norm"):
        parts = auxiliary.view(len(auxiliary), -1, embedding.shape[1]).unbind(1)
        auxiliary = torch.cat([rms(p, weights[f"fc_norm.{i}.weight"], eps) for i, p in enumerate(parts)], 1)
    states, logits, tokens = auxiliary @ weights["fc.weight"].T, [], list(tokens)
    for _ in range(count):
        x = states
        for i in range(sizes["num_hidden_layers"]):
            layer = f"layers.{i}"
            if i == 0:
                normed = rms(x, weights["layers.0.hidden_norm.weight"], eps)
                embedded = rms(embedding[tokens], weights["layers.0.input_layernorm.weight"], eps)
                residual, inputs = (
                    (normed if facts.get("norm_before_residual") else x),
                    torch.cat([embedded, normed], 1),
                )
            else:
                residual, inputs = x, rms(x, weights[f"{layer}.input_layernorm.weight"], eps)
            x = residual + attention(weights, f"{layer}.self_attn", inputs, sizes, facts["rope"])
            y = rms(x, weights[f"{layer}.post_attention_layernorm.weight"], eps)
            gate, up, down = (weights[f"{layer}.mlp.{p}_proj.weight"].T for p in ("gate", "up", "down"))
            x = x + (silu(y @ gate) * (y @ up)) @ down
        said = rms(x[-1], weights["norm.weight"], eps)
        logits.append(weights["lm_head.weight"] @ said)
        best = int(logits[-1].argmax())
        tokens.append(best + (int(weights["d2t"][best]) if "d2t" in weights else 0))
        states = torch.cat([states, (said if facts.get("norm_output") else x[-1])[None]])
    return logits
