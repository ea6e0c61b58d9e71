"""A drafter for any base that is often right and often wrong: the base itself, its logits moved at random.

An untrained drafter is hardly ever accepted and a perfect one never refused; either leaves half of verification
untried. This one grows chains and trees, proposes its best tokens or draws them, and errs about as often as it is
right: every token's logit is moved by a random amount of the size by which the best token leads.
"""

import torch
from torch import Tensor

from specdec.drafters.draft_model import DraftModel
from specdec.targets import Target

DRAFT_TOKENS = 4
_ROWS = 32  # of a prompt, and prompts, that tell how far the best token leads
_PROMPTS = 8


class Moved(Target):
    """The same base (the same weights, not a copy), its logits moved by lean[V]."""

    def __init__(self, target: Target, lean: Tensor):
        vars(self).update(vars(target))
        self._lean = lean

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) + self._lean


@torch.inference_mode()
def near_base(target: Target, prompts: list[list[int]], seed: int = 0) -> tuple[DraftModel, Tensor]:
    """(the drafter, lean[V]: how much it favours each token), for these prompts (one at least)."""
    leads = []
    for ids in prompts[:_PROMPTS]:
        hidden = target.forward(torch.tensor([ids], device=target.device)).hidden[0, -_ROWS:]
        best = target.logits(hidden).topk(2).values
        leads.append(best[:, 0] - best[:, 1])
    noise = torch.randn(target.vocab_size, generator=torch.Generator().manual_seed(seed)).to(target.device)
    lean = torch.cat(leads).median() * noise
    return DraftModel(Moved(target, lean), DRAFT_TOKENS), lean
