"""Medusa heads (Cai et al., 2024, arXiv:2401.10774), in the layout that vLLM loads as `medusa`.

Head i (from 0) reads the base's hidden state after the final norm at position t, where the base itself predicts
t+1, and predicts token t+2+i: `lm_heads[i](block_i(hidden))`, each layer of a block being `x + SiLU(W x)`. Blocks
start at zero, so every layer starts as the identity, and each head starts as a copy of the base's output layer.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from specdec.config import MedusaSettings
from specdec.drafters.interface import Drafter, DrafterLoss, Features, Proposal
from specdec.drafters.losses import chunked_cross_entropy
from specdec.errors import ModelError
from specdec.targets import Target


class _Block(nn.Module):
    """Residual layers x + SiLU(W x), without bias; `layers.{j}.weight` as vLLM names them."""

    def __init__(self, hidden_size: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(num_layers))
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + silu(layer(x))
        return x


class Medusa(Drafter):
    """`blocks.{i}.layers.{j}.weight [H, H]` and `lm_heads.{i}.weight [V, H]`."""

    method = "medusa"

    def __init__(self, hidden_size: int, vocab_size: int, num_heads: int, num_layers: int, head_decay: float = 1.0):
        super().__init__()
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.num_heads, self.num_layers, self.head_decay = num_heads, num_layers, head_decay
        self.blocks = nn.ModuleList(_Block(hidden_size, num_layers) for _ in range(num_heads))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(num_heads))

    @classmethod
    def from_config(cls, target: Target, settings: MedusaSettings) -> Self:
        with target.device:
            heads = cls(
                target.hidden_size,
                target.vocab_size,
                settings.num_heads,
                settings.num_layers,
                settings.head_decay,
            )
        with torch.no_grad():
            for weight in heads.lm_heads.parameters():
                weight.copy_(target.output_weight)
        return heads

    @classmethod
    def from_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        sizes = [config.get(k) for k in ("hidden_size", "vocab_size", "num_heads", "num_hidden_layers")]
        if config.get("model_type") != "medusa" or not all(isinstance(size, int) for size in sizes):
            raise ModelError(f"config.json describes no Medusa heads: model_type is {config.get('model_type')!r}")
        heads = cls(*sizes)  # type: ignore[arg-type]
        wanted = {name: tuple(t.shape) for name, t in heads.state_dict().items()}
        found = {name: tuple(t.shape) for name, t in tensors.items()}
        if wanted != found:
            wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
            details = "; ".join(f"{n}: {found.get(n, 'missing')}, wanted {wanted.get(n, 'none')}" for n in wrong[:4])
            raise ModelError(f"the Medusa checkpoint does not fit its config.json: {details}")
        heads.load_state_dict(tensors)
        return heads

    def checkpoint_config(self) -> dict[str, Any]:
        # vLLM lets any other key with "num" and "heads" or "layers" in it overwrite these: there must be none.
        return {
            "model_type": "medusa",
            "architectures": ["MedusaModel"],
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "num_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "medusa_fc_bias": False,
            "original_lm_head": False,
        }

    @property
    def max_draft_tokens(self) -> int:
        return self.num_heads

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.lm_heads.parameters()).dtype

    def loss(self, features: Features) -> DrafterLoss:
        """Sum over heads of head_decay^i times the mean cross-entropy on the answer tokens t+2+i."""
        anchors = features.answer_run(2)
        accepted = torch.where(anchors, 0, -1)
        losses, accuracies = [], []
        for i in range(self.num_heads):
            valid = features.answer_run(2 + i)
            labels = features.token_ids.roll(-(2 + i), dims=1)[valid]
            total, right = self._head_loss(i, features.hidden[valid], labels)
            count = max(1, len(labels))
            losses.append(total / count)
            accuracies.append(right.sum() / count)
            accepted[valid] += right & (accepted[valid] == i)
        weights = [self.head_decay**i for i in range(self.num_heads)]
        loss = torch.stack([w * one for w, one in zip(weights, losses, strict=True)]).sum()
        return DrafterLoss(loss, torch.stack(losses).detach(), torch.stack(accuracies), accepted)

    def _head_loss(self, i: int, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        blocked = self.blocks[i](states.to(self._dtype))
        return chunked_cross_entropy(self.lm_heads[i], blocked, labels, self.vocab_size)

    def propose(self, hidden: Tensor, budget: int) -> Proposal:
        states = hidden.to(self._dtype)[None]  # [1, H]: a matrix, which is faster than a vector
        pairs = list(zip(self.blocks, self.lm_heads, strict=True))[:budget]
        return Proposal(torch.cat([head(block(states)).argmax(-1) for block, head in pairs]))
