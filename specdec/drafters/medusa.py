"""Medusa heads (Cai et al., 2024, arXiv:2401.10774), in the layout that vLLM loads as `medusa`.

Head i (from 0) reads the base's hidden state after the final norm at position t, where the base itself predicts
t+1, and predicts token t+2+i: `lm_heads[i](block_i(hidden))`, each layer of a block being `x + SiLU(W x)`. Blocks
start at zero, so every layer starts as the identity, and each head starts as a copy of the base's output layer; or
all heads share one (`original_lm_head`).
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

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
from specdec.drafters.sampling import Draw, Drawn, Said, pick
from specdec.drafters.trees import Drafts, PlacedTree, Proposal, Shape, StaticTree, Tree, copied
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
    _compiled: Any = None

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
        self._compiled = compiled(self._draft, self.target.device)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        assert state.hidden is not None
        newest = state.hidden[-1:]
        state.forget()
        if state.fixed is not None and self._compiled and (tree is None or isinstance(tree, Tree | StaticTree)):
            tokens, parents, laws = self._propose_compiled(newest, budget, tree, draw)
        else:
            tokens, parents, laws = self._draft(newest, min(budget, tree.depth) if tree else budget, tree, draw)
        turns = None
        if isinstance(tree, StaticTree):
            turns = tree.on(newest.device).turns_at(min(budget, self.num_heads))
        return Proposal(tokens, parents, laws, turns)

    def _propose_compiled(
        self, newest: Tensor, budget: int, tree: Tree | StaticTree | None, draw: Draw | None
    ) -> Drafts:
        """As `_draft`, but where the budget cuts a tree: all heads speak, so that one form serves every step."""
        depth = min(self.num_heads, tree.depth if tree else self.draft_tokens)
        count = min(budget, depth)
        if tree is not None and count < depth:
            return self._draft(newest, count, tree, draw)
        drawn = None
        if draw is not None:
            noise = draw.ahead([1] * count, self.output_weights[0])  # for as many laws as uncompiled
            drawn = Drawn(draw.sampling, pad(noise, (0, 0, 0, depth - count), value=1.0))
        placed = None if tree is None else tree.on(newest.device)
        found: Drafts = self._compiled(newest, depth, placed, drawn)
        tokens, parents, laws = copied(found)
        if tree is not None:
            return tokens, parents, laws
        return tokens[:count], None, None if laws is None else laws[:count]

    def _draft(
        self, newest: Tensor, count: int, tree: Shape | PlacedTree | None, draw: Draw | Drawn | None
    ) -> Drafts:
        """Of the first `count` heads at newest[1, H]."""
        pairs = list(zip(self.blocks, self.output_weights, strict=True))[:count]
        width = tree.width if tree else 1
        levels = [pick(block(newest.to(weight.dtype)) @ weight.T, width, draw).at(0) for block, weight in pairs]
        if tree is None:
            laws = None if draw is None else torch.cat([said.laws for said in levels if said.laws is not None])
            return torch.cat([said.tokens for said in levels]), None, laws
        following = iter(levels)

        def extend(tokens: Tensor, _parents: Tensor) -> Said:
            """A head says the same behind every node: it has seen none of them."""
            said = next(following)
            count = len(tokens)
            laws = None if said.laws is None else said.laws.expand(count, -1, -1)
            return Said(said.scores.expand(count, -1), said.tokens.expand(count, -1), laws)

        made = tree.grow(len(levels), next(following), extend)
        return made.token_ids, made.parents, made.laws
