"""A drafter that knows the answer and errs by a plan: every path through verification, at will."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from specdec.drafters import Drafter, DrafterLoss, DraftState, Draw, Features, Proposal, Shape
from specdec.targets import Target


class Oracle(Drafter):
    """Proposes the continuation of `truth` (after the newest token), wrong where `plan` says.

    plan[i]: the draft position (from 0) of step i that is spoilt, or None for a step that is all right.
    """

    method: ClassVar[str] = "oracle"

    def __init__(self, truth: list[int], plan: list[int | None], length: int, vocab_size: int):
        super().__init__()
        self.truth, self.plan, self.length, self.vocab_size = truth, plan, length, vocab_size
        self.draft_tokens = length
        self.place, self.step = 1, 0
        self.offered: list[int] = []

    @classmethod
    def from_config(cls, target: Target, settings: Any, token_counts: Tensor | None = None) -> Self:
        raise AssertionError

    @classmethod
    def from_checkpoint(
        cls, target: Target, config: dict[str, Any], tensors: dict[str, Tensor], settings: Any = None
    ) -> Self:
        raise AssertionError

    def checkpoint_config(self) -> dict[str, Any]:
        return {}

    @property
    def loss_positions(self) -> int:
        return self.length

    def loss(self, features: Features, positions: int | None = None, measure: bool = False) -> DrafterLoss:
        raise AssertionError

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        count = min(budget, self.length)
        right = (self.truth[self.place : self.place + count] + [0] * count)[:count]
        spoilt = self.plan[self.step] if self.step < len(self.plan) else None
        if spoilt is not None and spoilt < count:
            right[spoilt] = (right[spoilt] + 1) % self.vocab_size
        accepted = spoilt if spoilt is not None and spoilt < count else count
        self.offered.append(accepted)
        self.place += accepted + 1
        self.step += 1
        return Proposal(torch.tensor(right))
