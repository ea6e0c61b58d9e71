"""A separate small language model as the drafter (Leviathan et al. 2023, arXiv:2211.17192): the classical baseline.

It must have the base's own tokenizer. It reads tokens and none of the base's states.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.drafters.interface import DraftState
from specdec.drafters.sampling import Draw, Said, pick
from specdec.drafters.trees import Proposal, Shape
from specdec.errors import ModelError
from specdec.targets import Target


@dataclass(frozen=True)
class DraftModel:
    """model: the small one. draft_tokens: its chain."""

    model: Target
    draft_tokens: int = 3
    aux_layers: tuple[int, ...] = ()

    @classmethod
    def for_base(cls, model: Target, base: Target, draft_tokens: int = 3) -> "DraftModel":
        """Raises ModelError when the two do not share a tokenizer, or the small one takes fewer positions."""
        if model.identity.tokenizer != base.identity.tokenizer or model.vocab_size != base.vocab_size:
            raise ModelError(
                f"{model.name} ({model.vocab_size} tokens) has another tokenizer than {base.name} "
                f"({base.vocab_size}): a draft model must share it"
            )
        if model.max_positions < base.max_positions:
            raise ModelError(
                f"{model.name} takes {model.max_positions} positions and {base.name} {base.max_positions}: a draft "
                "model must take as many"
            )
        return cls(model, draft_tokens)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        model = self.model
        assert state.token_ids is not None
        unread = state.token_ids
        if state.cache is None:
            assert state.start is not None
            state.cache = model.new_cache()
            unread = torch.cat([unread.new_tensor([state.start]), unread])
        cache = state.cache
        said = model.logits(model.forward(unread[None], cache=cache).hidden[0, -1:])
        state.forget()
        known = cache.get_seq_length()
        if tree is None:
            proposal = self._chain(cache, said, budget, draw)
        else:
            model.check_trees()
            proposal = self._grow(cache, said, min(budget, tree.depth), tree, draw)
        model.crop(cache, known)
        return proposal

    def _chain(self, cache: Any, said: Tensor, count: int, draw: Draw | None) -> Proposal:
        drafted = [pick(said, 1, draw).at(0)]
        for _ in range(1, count):
            said = self.model.logits(self.model.forward(drafted[-1].tokens[None], cache=cache).hidden[0])
            drafted.append(pick(said, 1, draw).at(0))
        laws = None if draw is None else torch.cat([one.laws for one in drafted if one.laws is not None])
        return Proposal(torch.cat([one.tokens for one in drafted]), None, laws)

    def _grow(self, cache: Any, said: Tensor, depth: int, tree: Shape, draw: Draw | None) -> Proposal:
        model, known = self.model, cache.get_seq_length()
        nodes = torch.empty(0, dtype=torch.long, device=said.device)  # all that were given
        seen = torch.empty(0, 0, dtype=torch.bool, device=said.device)
        start = 0  # of the level that was given before

        def extend(tokens: Tensor, parents: Tensor) -> Said:
            """Reads the whole tree so far in one pass: its cache holds the context alone."""
            nonlocal nodes, seen, start
            count = len(tokens)
            above = seen[start + parents] if len(nodes) else seen.new_zeros(count, 0)
            own = torch.eye(count, dtype=torch.bool, device=tokens.device)
            start = len(nodes)
            nodes = torch.cat([nodes, tokens])
            seen = torch.cat([pad(seen, (0, count)), torch.cat([above, own], 1)])
            hidden = model.forward_tree(nodes[None], seen, cache).hidden[0, start:]
            model.crop(cache, known)
            return pick(model.logits(hidden), tree.width, draw)

        return tree.grow(depth, pick(said, tree.width, draw).at(0), extend)
