"""How a token is chosen from logits: by the base when it speaks, by a drafter when it proposes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k most probable tokens and what ties with the last (0: all), top_p the
    smallest set of that mass among what is left; in this order, as in transformers and vLLM. Raises ConfigError."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, wrong, allowed in (
            ("temperature", not 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k < 0, "0 (all tokens) or more"),
            ("top_p", not 0 < self.top_p <= 1, "above 0, and 1 at most"),
        ):
            if wrong:
                raise ConfigError(f"{name} is {getattr(self, name)}, and must be {allowed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """logits[..., V] -> the law that a token is drawn from [..., V]. Greedy: all on the first of the best."""
        if self.greedy:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1)
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))  # what ties with it stays, as in transformers
        logits = logits - logits.amax(-1, keepdim=True)  # no temperature is too low
        temperature = max(self.temperature, torch.finfo(logits.dtype).tiny)  # one below is 0 to torch
        probabilities = torch.softmax(logits / temperature, -1)
        return nucleus(probabilities, self.top_p) if self.top_p < 1 else probabilities


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keeps the most probable tokens whose mass before them is below top_p, to sum 1. [..., V] -> [..., V]."""
    ordered, indices = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    behind = ordered.cumsum(-1) - ordered >= top_p
    behind[..., 0] = False  # whatever rounding makes of top_p
    ordered[behind] = 0
    kept = torch.zeros_like(probabilities).scatter(-1, indices, ordered)
    return kept / kept.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Draw:
    """Draft tokens are drawn by `sampling` instead of being the most probable ones."""

    sampling: Sampling
    generator: torch.Generator | None = None

    def arrivals(self, law: Tensor) -> Tensor:
        """Exponential noise, like law[n, V]."""
        return torch.empty_like(law).exponential_(generator=self.generator)

    def ahead(self, rows: list[int], output_weight: Tensor) -> Tensor:
        """The noise [sum(rows), V] that laws of so many rows, one behind the other, would ask for."""
        size = output_weight.shape[0]
        empty = [torch.empty(count, size, device=output_weight.device) for count in rows]
        return torch.cat([self.arrivals(law) for law in empty])


@dataclass
class Drawn:
    """A Draw whose noise [K, V] was made before: what is compiled has no generator."""

    sampling: Sampling
    noise: Tensor
    used: int = 0

    def arrivals(self, law: Tensor) -> Tensor:
        start = self.used
        self.used += len(law)
        return self.noise[start : self.used]


class Said(NamedTuple):
    """What a drafter says behind each of n nodes, w tokens, the best (or the one drawn first) in front.

    scores[n, w]: log p; tokens[n, w]; laws[n, w, V]: what each was drawn from once those in front of it were not
    taken, or None where they are the most probable tokens.
    """

    scores: Tensor
    tokens: Tensor
    laws: Tensor | None = None

    def at(self, index: int) -> "Said":
        """Of one node: [w], [w], [w, V]."""
        return Said(self.scores[index], self.tokens[index], None if self.laws is None else self.laws[index])


def pick(logits: Tensor, width: int, draw: Draw | Drawn | None = None) -> Said:
    """`width` different tokens behind each of n nodes, from logits[n, V] (fewer where V is smaller)."""
    width = min(width, logits.shape[-1])
    if draw is None:
        if width == 1:  # a chain needs no probabilities
            return Said(torch.zeros_like(logits[:, :1]), logits.argmax(-1, keepdim=True))
        scores, tokens = logits.float().log_softmax(-1).topk(width)
        return Said(scores.clamp(max=0), tokens)
    law = draw.sampling.probabilities(logits.float())
    # An exponential race: in the order of arrival these are draws without replacement, one behind the other.
    tokens = (law / draw.arrivals(law).clamp(min=1e-30)).topk(width).indices
    return Said(law.gather(-1, tokens).log(), tokens, successive_laws(law, tokens))


def successive_laws(law: Tensor, tokens: Tensor) -> Tensor:
    """law[n, V], tokens[n, w] drawn without replacement -> [n, w, V]: what each was drawn from, those in front of it
    being gone. Zeros where nothing was left."""
    left, laws = law, []
    for token in tokens.T[..., None]:
        laws.append(left / left.sum(-1, keepdim=True).clamp(min=1e-30))
        left = left.scatter(-1, token, 0)
    return torch.stack(laws, 1)
