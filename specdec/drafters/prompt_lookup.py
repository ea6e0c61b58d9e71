"""Prompt lookup: what came behind the same last tokens earlier in the context (Saxena 2023).

No weights and no training: the baseline that every drafter has to beat, and a good one where answers copy.
"""

from dataclasses import dataclass, field

import torch

from specdec.drafters.interface import DraftState
from specdec.drafters.sampling import Draw
from specdec.drafters.trees import Proposal, Shape
from specdec.errors import ConfigError


@dataclass
class _Context:
    """token_ids so far; behind[n-gram]: the place behind its latest occurrence that something follows."""

    token_ids: list[int]
    behind: dict[tuple[int, ...], int] = field(default_factory=dict)

    def add(self, tokens: list[int], longest: int) -> None:
        for token in tokens:
            end = len(self.token_ids)
            for length in range(1, min(longest, end) + 1):
                self.behind[tuple(self.token_ids[end - length :])] = end
            self.token_ids.append(token)

    def lookup(self, longest: int, count: int) -> list[int]:
        """What followed the longest known n-gram that ends the context."""
        for length in range(min(longest, len(self.token_ids)), 0, -1):
            place = self.behind.get(tuple(self.token_ids[-length:]))
            if place is not None:
                return self.token_ids[place : place + count]
        return []


@dataclass(frozen=True)
class PromptLookup:
    """draft_tokens: proposed in a step, at most. longest: n-gram that is looked for first, then shorter ones."""

    draft_tokens: int = 10
    longest: int = 3
    aux_layers: tuple[int, ...] = ()

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        if tree:
            raise ConfigError("prompt lookup proposes a chain of what was said: it grows no tree")
        assert state.token_ids is not None
        assert state.start is not None
        if state.cache is None:
            state.cache = _Context([state.start])
        context: _Context = state.cache
        context.add(state.token_ids.tolist(), self.longest)
        found = context.lookup(self.longest, budget)
        proposal = Proposal(torch.tensor(found, dtype=torch.long, device=state.token_ids.device))
        state.forget()
        return proposal
