"""Verification: which draft tokens the base itself would have said (docs/drafters.md, "Why it is lossless").

Drafts here are choices, not samples. For such a proposal, chain or tree, the exact rule is simple: let the base
choose its own token behind the context, from its own distribution; while that token is among the drafts that follow,
go on behind it, and stop with the first that is not. Every emitted token was then drawn from the base's distribution
given the tokens before it: greedy decoding and sampling alike, with no correction to make.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.drafters import Proposal


@dataclass(frozen=True)
class Chooser:
    """How the base chooses a token. temperature 0 is greedy; top_p keeps the smallest set of that mass."""

    temperature: float = 0.0
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """logits[N, V] -> tokens[N], each drawn independently."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.temperature, -1)
        if self.top_p < 1:
            probabilities = nucleus(probabilities, self.top_p)
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zeroes all but the most probable tokens whose mass before them is below top_p. [N, V] -> [N, V]."""
    ordered, indices = probabilities.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return torch.zeros_like(probabilities).scatter(-1, indices, ordered)


def accepted_path(proposal: Proposal, chosen: Tensor) -> Tensor:
    """Places of the accepted draft tokens, from the first one on.

    chosen[N+1]: what the base chose behind the context, and behind each draft token.
    """
    if proposal.parents is None:
        right = proposal.token_ids == chosen[:-1]
        count = int(right.int().cumprod(0).sum())
        return torch.arange(count, device=chosen.device)
    right = proposal.token_ids == chosen[proposal.parents + 1]
    ancestors = proposal.ancestors()
    whole = ~(ancestors & ~right).any(1)  # all of its path is right; children differ, so there is one such path
    deepest = int((ancestors.sum(1) * whole).argmax())
    return (ancestors[deepest] & whole[deepest]).nonzero().squeeze(-1)
