"""Verification: which draft tokens stay, and what the base says behind them (docs/drafters.md, "Why it is lossless").

Three rules, by what the proposal is:

- *Choices* (the drafter's most probable tokens, a chain or a tree): the base draws its own token behind the context,
  from its own law; while that token is among the drafts that follow, go on behind it, and stop with the first that is
  not. Every emitted token was drawn by the base. Greedy decoding is this rule too.
- *Draws* (sampled by the drafter): speculative sampling with residual (Leviathan et al. 2023, arXiv:2211.17192;
  several children of one node as in SpecInfer, Miao et al. 2024, arXiv:2305.09781). A draft x from the law q is kept
  with chance min(1, p(x) / q(x)), else p becomes the normed positive part of p - q for the next child, or the base.
- *Typical* acceptance (Medusa's): a draft is kept where the base finds it likely enough. It changes the output's law,
  and is used only where it is asked for by name.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.drafters import Proposal, Sampling
from specdec.drafters.trees import ROOT
from specdec.errors import ConfigError


@dataclass(frozen=True)
class Typical:
    """Lossy: keeps a draft whose probability is above min(epsilon, delta exp(-entropy)) (arXiv:2401.10774, 2.3.1)."""

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1 and self.delta > 0):
            raise ConfigError(
                f"typical acceptance: epsilon {self.epsilon} must be in (0, 1], delta {self.delta} above 0"
            )


@dataclass(frozen=True)
class Verdict:
    """places[a]: the accepted draft tokens, from the first one on. token_ids[a+1]: they, and what the base says."""

    places: list[int]
    token_ids: list[int]


@dataclass(frozen=True)
class Verifier:
    """How the base chooses, and with which random numbers. typical: the lossy rule; None: an exact one."""

    sampling: Sampling
    generator: torch.Generator | None = None
    typical: Typical | None = None

    def __call__(self, proposal: Proposal, logits: Tensor) -> Verdict:
        """logits[N+1, V]: the base's behind the context, and behind each draft token."""
        if self.typical and len(proposal.token_ids):
            plain = torch.softmax(logits / (self.sampling.temperature or 1), -1)
            path = deepest(proposal, likely_enough(proposal, plain, self.typical))
            return self._verdict(proposal, path, self._draw_behind(path, self.sampling.probabilities(logits)))
        if proposal.laws is None:
            chosen = self.choose(logits)
            path = accepted_path(proposal, chosen)
            return self._verdict(proposal, path, chosen.index_select(0, row_behind(path)))
        uniforms = torch.rand(len(proposal.token_ids), generator=self.generator, device=logits.device)
        kept, left = rejection(proposal, self.sampling.probabilities(logits), uniforms)
        path = deepest(proposal, kept)
        return self._verdict(proposal, path, self._draw_behind(path, left))

    def choose(self, logits: Tensor) -> Tensor:
        """The base's own token behind each of n contexts: logits[n, V] -> tokens[n], each drawn independently."""
        if self.sampling.greedy:
            return logits.argmax(-1)
        return self._draw(self.sampling.probabilities(logits))

    def _draw(self, probabilities: Tensor) -> Tensor:
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)

    def _draw_behind(self, path: Tensor, laws: Tensor) -> Tensor:
        return self._draw(laws.index_select(0, row_behind(path)))

    @staticmethod
    def _verdict(proposal: Proposal, path: Tensor, following: Tensor) -> Verdict:
        # The only wait for the device in a step: all that the host has to know comes at once.
        told = torch.cat([path.long(), proposal.token_ids, following]).tolist()
        places = [place for place in range(len(path)) if told[place]]
        return Verdict(places, [*(told[len(path) + place] for place in places), told[-1]])


def accepted_path(proposal: Proposal, chosen: Tensor) -> Tensor:
    """bool[N]: the accepted draft tokens, where the drafts are choices.

    chosen[N+1]: what the base chose behind the context, and behind each draft token.
    """
    if proposal.parents is None:
        return deepest(proposal, proposal.token_ids == chosen[:-1])
    return deepest(proposal, proposal.token_ids == chosen[proposal.parents + 1])


def rejection(proposal: Proposal, probabilities: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(kept[N], left[N+1, V]) of drafts that were drawn.

    probabilities[N+1, V]: the base's law behind the context, and behind each draft token; uniforms[N] in [0, 1).
    kept: the draft is taken if its parent is. left: the law of the base's next token behind the context, and behind
    each draft token, where none of its children is kept.
    """
    assert proposal.laws is not None
    count = len(proposal.token_ids)
    parents = proposal.parents
    if parents is None:
        parents = torch.arange(ROOT, count - 1, device=uniforms.device)
    kept = torch.zeros(count, dtype=torch.bool, device=uniforms.device)
    taken = torch.zeros(count + 1, dtype=torch.bool, device=uniforms.device)  # the node has a kept child
    left = probabilities
    for nodes in _turns(proposal, parents):
        above, law = parents[nodes] + 1, proposal.laws[nodes]
        token = proposal.token_ids[nodes, None]
        wanted, drawn = left[above].gather(-1, token)[:, 0], law.gather(-1, token)[:, 0]
        keep = (uniforms[nodes] < wanted / drawn) & (drawn > 0) & ~taken[above]
        rest = (left[above] - law).clamp(min=0)
        total = rest.sum(-1, keepdim=True)
        # Nothing is left where the two laws are the same but for rounding: then the draft is never refused.
        rest = torch.where(total > 0, rest / total, left[above])
        kept[nodes], taken[above] = keep, taken[above] | keep
        left = left.index_copy(0, above, rest)
    return kept, left


def _turns(proposal: Proposal, parents: Tensor) -> tuple[Tensor, ...]:
    """Places of the drafts that are some node's first child, its second, ...: in one turn no parent comes twice."""
    if proposal.turns is not None:
        return proposal.turns
    if proposal.parents is None:
        return (torch.arange(len(parents), device=parents.device),)
    before = (parents[:, None] == parents).tril(-1).sum(1)  # siblings that stand in front
    return tuple((before == turn).nonzero().squeeze(-1) for turn in range(int(before.max()) + 1))


def likely_enough(proposal: Proposal, probabilities: Tensor, rule: Typical) -> Tensor:
    """bool[N]: what typical acceptance keeps. probabilities[N+1, V]: the base's."""
    entropy = -torch.xlogy(probabilities, probabilities).sum(-1)
    least = (rule.delta * torch.exp(-entropy)).clamp(max=rule.epsilon)
    count = len(proposal.token_ids)
    parents = torch.arange(ROOT, count - 1, device=least.device) if proposal.parents is None else proposal.parents
    return probabilities[parents + 1].gather(-1, proposal.token_ids[:, None])[:, 0] > least[parents + 1]


def deepest(proposal: Proposal, kept: Tensor) -> Tensor:
    """bool[N]: the longest path from the context on whose every node is kept[N] (the first one of several)."""
    if proposal.parents is None:
        return kept.int().cumprod(0).bool()
    ancestors = proposal.ancestors()
    whole = ~(ancestors & ~kept).any(1)
    last = (ancestors.sum(1) * whole).argmax(0, keepdim=True)
    return (ancestors & whole[:, None]).index_select(0, last)[0]


def row_behind(path: Tensor) -> Tensor:
    """[1]: the row of logits behind the accepted path[N]; parents stand in front of their children."""
    rows = torch.arange(1, len(path) + 1, device=path.device)
    return pad(rows * path, (1, 0)).amax(0, keepdim=True)
