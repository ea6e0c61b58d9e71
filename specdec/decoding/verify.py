"""Verification: which draft tokens the base itself would have said (docs/drafters.md, "Why it is lossless").

The draft here is a single choice a position, not a sample. For such a proposal the exact rule is simple: let the
base choose its own token at every position, from its own distribution; while that token is the drafted one, go
on to the next position, and stop with the first that differs. Every emitted token was then drawn from the base's
distribution given the tokens before it: greedy decoding and sampling alike, with no correction to make.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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


def count_accepted(draft: Tensor, chosen: Tensor) -> Tensor:
    """draft[K], chosen[K+1] -> how many leading draft tokens the base chose too (a scalar tensor)."""
    return (draft == chosen[: len(draft)]).int().cumprod(0).sum()
