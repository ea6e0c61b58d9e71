"""Medusa heads (Cai et al., 2024, arXiv:2401.10774), in the layout that vLLM loads as `medusa`.

Head i (from 0) reads the base's hidden state after the final norm at position t, where the base itself predicts
t+1, and predicts token t+2+i: `lm_heads[i](block_i(hidden))`, each layer of a block being `x + SiLU(W x)`. Blocks
start at zero, so every layer starts as the identity, and each head starts as a copy of the base's output layer; or
all heads share one (`original_lm_head`).
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from specdec.config import MedusaMethod
from specdec.drafters.head_loss import Job, head_loss
from specdec.drafters.interface import (
    Drafter,
    DrafterLoss,
    DraftState,
    Features,
    accepted,
    check_tensors,
)
from specdec.drafters.sampling import Draw, Said, pick
from specdec.drafters.trees import Proposal, Shape
from specdec.errors import ModelError
from specdec.targets import Target, compiled


class _Block(nn.Module):
    """Residual layers x + SiLU(W x + b), b only on demand; `layers.{j}.weight` and `.bias` as vLLM names them."""

    def __init__(self, hidden_size: int, num_layers: int, bias: bool):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=bias) for _ in range(num_layers))
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + silu(layer(x))
        return x


class Medusa(Drafter):
    """`blocks.{i}.layers.{j}.weight [H, H]`, perhaps with a `.bias [H]`; `lm_heads.{i}.weight [V, H]`, or one
    `lm_head.weight`."""

    method = "medusa"
    _compiled_chain: Any = None

    def __init__(
        self,
        target: Target,
        num_heads: int,
        num_layers: int,
        shared: bool,
        settings: MedusaMethod | None = None,
        bias: bool = False,
    ):
        """settings: for training; loaded heads need none. bias: of the blocks, which the original Medusa has."""
        super().__init__()
        self.target = target
        self.num_heads, self.num_layers, self.bias = num_heads, num_layers, bias
        self.draft_tokens = num_heads
        width, vocabulary = target.hidden_size, target.vocab_size
        self.blocks = nn.ModuleList(_Block(width, num_layers, bias) for _ in range(num_heads))
        self.lm_head = nn.Linear(width, vocabulary, bias=False) if shared else None
        self.lm_heads = nn.ModuleList(
            nn.Linear(width, vocabulary, bias=False) for _ in range(0 if shared else num_heads)
        )
        self._head_decay = settings.head_decay if settings else 1.0
        self._loss_kind = settings.loss if settings else "cross_entropy"

    @classmethod
    def from_config(cls, target: Target, settings: MedusaMethod, token_counts: Tensor | None = None) -> Self:
        shared = settings.shared_output_layer
        with target.device:
            heads = cls(target, settings.num_heads, settings.num_layers, shared, settings)
        with torch.no_grad():
            for weight in heads.output_weights[: 1 if shared else None]:
                weight.copy_(target.output_weight * target.logit_scale)
        return heads

    @classmethod
    def from_checkpoint(
        cls, target: Target, config: dict[str, Any], tensors: dict[str, Tensor], settings: MedusaMethod | None = None
    ) -> Self:
        sizes = [config.get(k) for k in ("hidden_size", "vocab_size", "num_heads", "num_hidden_layers")]
        if config.get("model_type") != "medusa" or not all(isinstance(size, int) for size in sizes):
            raise ModelError(f"config.json describes no Medusa heads: model_type is {config.get('model_type')!r}")
        if (sizes[0], sizes[1]) != (target.hidden_size, target.vocab_size):
            raise ModelError(
                f"config.json describes heads of {sizes[0]} x {sizes[1]}, and {target.name} has "
                f"{target.hidden_size} x {target.vocab_size} (hidden_size x vocab_size)"
            )
        shared = bool(config.get("original_lm_head"))
        bias = bool(config.get("medusa_fc_bias"))
        heads = cls(target, config["num_heads"], config["num_hidden_layers"], shared, settings, bias)
        check_tensors("Medusa", heads.state_dict(), tensors)
        heads.load_state_dict(tensors)
        return heads

    def checkpoint_config(self) -> dict[str, Any]:
        # vLLM lets any other key with "num" and "heads" or "layers" in it overwrite these: there must be none.
        return {
            "model_type": "medusa",
            "architectures": ["MedusaModel"],
            "hidden_size": self.target.hidden_size,
            "vocab_size": self.target.vocab_size,
            "num_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "medusa_fc_bias": self.bias,
            "original_lm_head": self.lm_head is not None,
        }

    @property
    def output_weights(self) -> list[Tensor]:
        """[V, H] of each head; the same tensor for all where they share it."""
        if self.lm_head is not None:
            return [self.lm_head.weight] * self.num_heads
        return [*self.lm_heads.parameters()]

    @property
    def loss_positions(self) -> int:
        return self.num_heads

    def loss(self, features: Features, positions: int | None = None, measure: bool = False) -> DrafterLoss:
        """Sum over heads of head_decay^i times the mean loss on the answer tokens t+2+i."""
        positions = min(positions or self.num_heads, self.num_heads)
        runs = [features.answer_run(2 + i) for i in range(positions)]
        rows = [run.flatten().nonzero().squeeze(-1) for run in runs]
        hidden = features.hidden.flatten(0, 1)
        weights = self.output_weights[:positions]
        states = [
            block(hidden[row].to(weight.dtype))
            for block, row, weight in zip(self.blocks, rows, weights, strict=False)
        ]
        own = torch.stack([row.new_tensor(len(row)) for row in rows])
        counts = own if features.counts is None else features.counts
        decay = self._head_decay ** torch.arange(positions, device=hidden.device)
        job = Job(
            kind=self._loss_kind,
            places=[row + 2 + i for i, row in enumerate(rows)],
            labels=features.token_ids.flatten(),
            teacher=(lambda places: self.target.logits(hidden[places - 1]))
            if measure or self._loss_kind != "cross_entropy"
            else None,
            factors=decay / counts.clamp(min=1),
            measure=measure,
        )
        loss = head_loss(job, states, weights)
        return DrafterLoss(loss, job.sums, own, accepted(runs, rows, job.rights))

    def compile_drafting(self) -> None:
        self._compiled_chain = compiled(self._chain, self.target.device)

    def _chain(self, newest: Tensor) -> Tensor:
        """Each head's most probable token [heads] at newest[1, H]."""
        pairs = zip(self.blocks, self.output_weights, strict=True)
        return torch.cat([(block(newest.to(weight.dtype)) @ weight.T).argmax(-1) for block, weight in pairs])

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        assert state.hidden is not None
        if state.fixed is not None and self._compiled_chain and tree is None and draw is None:
            newest = state.hidden[-1:]
            state.forget()
            return Proposal(self._compiled_chain(newest)[:budget].clone())
        weights = self.output_weights
        newest = state.hidden[-1:].to(weights[0].dtype)
        state.forget()
        count = min(budget, tree.depth) if tree else budget
        pairs = list(zip(self.blocks, weights, strict=True))[:count]
        width = tree.width if tree else 1
        levels = [pick(block(newest) @ weight.T, width, draw).at(0) for block, weight in pairs]
        if tree is None:
            laws = None if draw is None else torch.cat([said.laws for said in levels if said.laws is not None])
            return Proposal(torch.cat([said.tokens for said in levels]), None, laws)
        following = iter(levels)

        def extend(tokens: Tensor, _parents: Tensor) -> Said:
            """A head says the same behind every node: it has seen none of them."""
            said = next(following)
            count = len(tokens)
            laws = None if said.laws is None else said.laws.expand(count, -1, -1)
            return Said(said.scores.expand(count, -1), said.tokens.expand(count, -1), laws)

        return tree.grow(len(levels), next(following), extend)
