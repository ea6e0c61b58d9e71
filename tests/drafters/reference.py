"""EAGLE and EAGLE-3 read off their checkpoint layout: one row after the other, one anchor by itself, in float64."""

from typing import Any

import torch
from torch import Tensor

from specdec.drafters import Drafter
from tests.drafters.examples import Document

Cache = list[list[tuple[Tensor, Tensor]]]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def rotated(x: Tensor, position: int, rope: dict[str, Any]) -> Tensor:
    """x[heads, D]: dimension i turns with i + D/2."""
    half = x.shape[1] // 2
    angle = position * rope["rope_theta"] ** (-torch.arange(half).double() / half)
    if rope["rope_type"] == "linear":
        angle = angle / rope["factor"]
    first, second = x[:, :half], x[:, half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], 1)


class Reference:
    """`weights`: the checkpoint's tensors, which get gradients."""

    def __init__(self, drafter: Drafter):
        self.config = drafter.checkpoint_config()
        self.weights = {
            name: t.double().requires_grad_() if t.is_floating_point() else t
            for name, t in drafter.checkpoint_tensors().items()
        }
        self.three = drafter.method == "eagle3"
        self.embedding = self.weights.get("embed_tokens.weight", drafter.target.embedding_weight.double())
        self.base_output = drafter.target.output_weight.double() * drafter.target.logit_scale
        self.output = self.weights["lm_head.weight"] if self.three else self.base_output

    @property
    def target_ids(self) -> Tensor:
        """[Vd]: the base's token of each draft."""
        every = torch.arange(len(self.output))
        return every + self.weights["d2t"] if "d2t" in self.weights else every

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms(x, self.weights[f"{name}.weight"], self.config["rms_norm_eps"])

    def _layer(self, i: int, x: Tensor, residual: Tensor, position: int, held: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One row through a decoder layer; `held` gets its key and value."""
        size, heads, groups = (self.config[n] for n in ("head_dim", "num_attention_heads", "num_key_value_heads"))
        w = {n.removeprefix(f"layers.{i}."): t for n, t in self.weights.items() if n.startswith(f"layers.{i}.")}
        query = rotated(
            (w["self_attn.q_proj.weight"] @ x).view(heads, size), position, self.config["rope_parameters"]
        )
        key = rotated((w["self_attn.k_proj.weight"] @ x).view(groups, size), position, self.config["rope_parameters"])
        held.append((key, (w["self_attn.v_proj.weight"] @ x).view(groups, size)))
        attended = []
        for h in range(heads):
            g = h // (heads // groups)
            shares = torch.stack([query[h] @ k[g] / size**0.5 for k, _ in held]).softmax(0)
            attended.append(torch.stack([v[g] for _, v in held]).T @ shares)
        state = residual + w["self_attn.o_proj.weight"] @ torch.cat(attended)
        normed = self._norm(state, f"layers.{i}.post_attention_layernorm")
        gate = w["mlp.gate_proj.weight"] @ normed
        return state + w["mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * (w["mlp.up_proj.weight"] @ normed))

    def _row(self, state: Tensor, token: int, position: int, cache: Cache) -> Tensor:
        embedded = self.embedding[token]
        if self.three:
            normed = self._norm(state, "layers.0.hidden_norm")
            inputs = torch.cat([self._norm(embedded, "layers.0.input_layernorm"), normed])
            return self._layer(
                0, inputs, normed if self.config["norm_before_residual"] else state, position, cache[0]
            )
        x = self.weights["fc.weight"] @ torch.cat([embedded, state])
        for i in range(self.config["num_hidden_layers"]):
            x = self._layer(i, x if i == 0 else self._norm(x, f"layers.{i}.input_layernorm"), x, position, cache[i])
        return x

    def _base_fed(self, document: Document, s: int) -> Tensor:
        if not self.three:
            return document.hidden[s].double()
        assert document.auxiliary is not None
        parts = document.auxiliary[s].double().chunk(self.config["num_aux_hidden_states"])
        if self.config["fc_norm"]:
            parts = tuple(self._norm(part, f"fc_norm.{i}") for i, part in enumerate(parts))
        return self.weights["fc.weight"] @ torch.cat(parts)

    def chain(self, document: Document, t: int, length: int, forced: bool) -> tuple[list[Tensor], list[int]]:
        """Drafts `length` tokens at t -> (what the output layer reads each time, the drafts).

        forced: go on with the document's tokens, as in training, instead of the drafts.
        """
        cache: Cache = [[] for _ in range(self.config["num_hidden_layers"])]
        ids = document.token_ids.tolist()
        for s in range(t + 1):
            out = self._row(self._base_fed(document, s), ids[s + 1], s, cache)
        said, drafts = [], []
        for k in range(length):
            normed = self._norm(out, "norm") if self.three else out
            said.append(normed)
            drafts.append(int(self.target_ids[(self.output @ normed).argmax()]))
            if k < length - 1:
                state = normed if self.three and self.config["norm_output"] else out
                out = self._row(state, ids[t + 2 + k] if forced else drafts[-1], t + 1 + k, cache)
        return said, drafts

    def loss(self, document: Document, t: int, k: int, said: Tensor, kind: str) -> Tensor:
        """Of draft position k at t, from what the output layer reads."""
        log_p = (self.output @ said).log_softmax(0)
        if kind == "cross_entropy":
            return -log_p[self.target_ids == document.token_ids[t + 2 + k]].sum()
        q = (self.base_output @ document.hidden[t + 1 + k].double()).softmax(0)[self.target_ids]
        return (q * (q.log() - log_p)).sum()
