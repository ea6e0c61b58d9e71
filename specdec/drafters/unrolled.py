"""What EAGLE and EAGLE-3 share: a small decoder that feeds on its own output, unrolled in training as in drafting.

Draft position k at anchor t reads the embedding of token t+1+k and a state: the base's at t for k = 0, the drafter's
own output of position k-1 afterwards. It attends to the base-fed rows of its document up to t, and to its own rows
of positions 1..k at the same anchor: exactly what the cache holds when decoding drafts from t (docs/drafters.md).

    keys          base-fed rows s <= t          own rows
    position 0    [0 1 ... t]
    position 1    [0 1 ... t]                   [t;1]
    position 2    [0 1 ... t]                   [t;1] [t;2]

Queries, outputs and losses are computed for anchors only: prompts cost keys and values, no more.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from specdec.drafters.attention import Chain, Mask, attend_to, mask_of
from specdec.drafters.fixed_drafts import draft, propose_fixed
from specdec.drafters.head_loss import DraftVocabulary, Job, head_loss
from specdec.drafters.interface import Drafter, DrafterLoss, DraftState, Features, accepted, check_tensors
from specdec.drafters.llama_layer import Dimensions, DraftLayer, Rotary
from specdec.drafters.sampling import Draw, Drawn, Said, pick
from specdec.drafters.trees import Proposal, Shape, StaticTree, Tree
from specdec.errors import ModelError
from specdec.targets import Target, compiled

Attend = Callable[[int, DraftLayer, Tensor], Tensor]


class Unrolled(Drafter):
    """A drafter whose layers run once a draft position. Subclasses say what goes in and what comes out."""

    sizes: Dimensions
    layers: nn.ModuleList
    rotary: Rotary
    unroll_steps: int
    unroll_decay: float
    loss_kind: str
    vocabulary: DraftVocabulary | None = None
    logit_scale: float = 1.0
    checkpointing: bool = False  # recompute each draft position in the backward pass
    _compiled: Any = None

    @abstractmethod
    def __init__(self, target: Target, config: dict[str, Any], settings: Any = None):
        """config: `config.json`. settings: for training; a loaded drafter needs none."""
        super().__init__()

    @classmethod
    def from_checkpoint(
        cls, target: Target, config: dict[str, Any], tensors: dict[str, Tensor], settings: Any = None
    ) -> Self:
        try:
            drafter = cls(target, config, settings)
        except KeyError as error:
            raise ModelError(f"config.json describes no {cls.method} drafter: {error.args[0]} is missing") from None
        check_tensors(cls.method, drafter.state_dict(), tensors)
        drafter.load_state_dict(tensors)
        return drafter

    def start_layers(self) -> None:
        """Fresh weights, with which attention and MLP add nothing yet."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)

    @abstractmethod
    def first_states(self, hidden: Tensor, auxiliary: Tensor | None) -> Tensor:
        """hidden[N, H], auxiliary[N, A*H] of the base -> the states [N, H] that draft position 0 reads."""

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids[N] -> [N, H]."""

    @abstractmethod
    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """What the first layer reads of states[N, H] and the embeddings[N, H] of the tokens behind them."""

    @abstractmethod
    def finish(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The layers' output [N, H] -> (what the output layer reads, the next draft position's state)."""

    @property
    @abstractmethod
    def output_weight(self) -> Tensor:
        """[Vd, H]."""

    @property
    def loss_positions(self) -> int:
        return self.unroll_steps

    def feature_loss(self, states: list[Tensor], rows: list[Tensor], features: Features) -> Tensor | None:
        """A further loss on the outputs of the layers, states[k][n_k, H] at flat rows[k]."""
        return None

    def head_weight(self) -> float:
        """Of the loss on tokens, beside `feature_loss`."""
        return 1.0

    # ---------------------------------------------------------------- training

    def loss(self, features: Features, positions: int | None = None, measure: bool = False) -> DrafterLoss:
        positions = positions or self.unroll_steps
        runs = [features.answer_run(2 + k) for k in range(positions)]
        rows = [run.flatten().nonzero().squeeze(-1) for run in runs]
        outputs = self._unroll(features, rows)
        finished = [self.finish(o)[0] for o in outputs]
        counts = features.counts if features.counts is not None else torch.stack([r.sum() for r in runs])
        decay = self.unroll_decay ** torch.arange(positions, device=counts.device)
        hidden = features.hidden.flatten(0, 1)
        job = Job(
            kind=self.loss_kind,
            places=[r + 2 + k for k, r in enumerate(rows)],
            labels=features.token_ids.flatten(),
            teacher=(lambda places: self.target.logits(hidden[places - 1]))
            if measure or self.loss_kind != "cross_entropy"
            else None,
            factors=self.head_weight() * decay / counts.clamp(min=1),
            vocabulary=self.vocabulary,
            scale=self.logit_scale,
            measure=measure,
        )
        loss = head_loss(job, finished, [self.output_weight] * positions)
        further = self.feature_loss(outputs, rows, features)
        if further is not None:
            loss = loss + further
        return DrafterLoss(loss, job.sums, torch.stack([r.sum() for r in runs]), accepted(runs, rows, job.rights))

    def _unroll(self, features: Features, rows: list[Tensor]) -> list[Tensor]:
        """The layers' outputs [n_k, H] at flat rows[k] of each draft position k."""
        ids, places = features.token_ids.flatten(), features.positions.flatten()
        hidden = features.hidden.flatten(0, 1)
        auxiliary = None if features.auxiliary is None else features.auxiliary.flatten(0, 1)
        dtype = self._dtype
        states = self.first_states(hidden.to(dtype), None if auxiliary is None else auxiliary.to(dtype))
        walk = _Walk(self, features.document_ids, places)
        outputs = [walk.first(states, self.embed(ids.roll(-1)), rows[0])]
        chain: list[Chain] = [[] for _ in self.layers]
        for k in range(1, len(rows)):
            keep = torch.searchsorted(rows[k - 1], rows[k])  # rows of k are rows of k - 1
            chain = [[(key[keep], value[keep]) for key, value in own] for own in chain]
            step = (self.finish(outputs[-1])[1][keep], self.embed(ids[rows[k] + 1 + k]), rows[k], chain, k)
            if self.checkpointing and torch.is_grad_enabled():
                output, chain = checkpoint(walk.next, *step, use_reentrant=False)
            else:
                output, chain = walk.next(*step)
            outputs.append(output)
        return outputs

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.layers.parameters()).dtype

    def run_layers(
        self, states: Tensor, embeddings: Tensor, attend: Attend, last_rows: Tensor | None = None
    ) -> Tensor:
        """All layers over rows [N, H]; the last one only for `last_rows`, when given."""
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DraftLayer)
            inputs, residual = layer.enter(states, embeddings)
            attended = attend(i, layer, inputs)
            if last_rows is not None and i == len(self.layers) - 1:
                residual = residual[last_rows]
            states = layer.leave(residual, attended)
        return states

    # ---------------------------------------------------------------- drafting

    def compile_drafting(self) -> None:
        self._compiled = compiled(draft, self.target.device)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        if state.fixed is not None and self._compiled and (tree is None or isinstance(tree, Tree | StaticTree)):
            return propose_fixed(self, state, self._compiled, budget, tree, draw)
        if state.cache is None:
            state.cache = DraftCache(len(self.layers))
        cache: DraftCache = state.cache
        output, position = self._read(state, cache)
        known = cache.length
        said, states = self.finish(output)
        if tree is None:
            proposal = self._chain(cache, said, states, position, budget, draw)
        else:
            proposal = self._grow(cache, said, states, position, min(budget, tree.depth), tree, draw)
        cache.crop(known)
        return proposal

    def _read(self, state: DraftState, cache: "DraftCache") -> tuple[Tensor, Tensor]:
        """(output[1, H] at the newest true state, its position[1]); the cache holds all of them."""
        assert state.token_ids is not None
        assert state.hidden is not None
        auxiliary = None if state.auxiliary is None else state.auxiliary.to(self._dtype)
        states = self.first_states(state.hidden.to(self._dtype), auxiliary)
        count = len(states)
        positions = torch.arange(cache.length, cache.length + count, device=states.device)
        mask = None  # nothing is before them
        if cache.length and count > 1:
            mask = torch.ones(count, cache.length + count, dtype=torch.bool, device=states.device).tril(cache.length)
        output = self._append(cache, states, state.token_ids, positions, mask, causal=cache.length == 0)
        state.forget()
        return output[-1:], positions[-1:]

    def _chain(
        self, cache: "DraftCache", said: Tensor, states: Tensor, position: Tensor, count: int, draw: Draw | None
    ) -> Proposal:
        drafted: list[Said] = []
        for i in range(count):
            if i > 0:
                output = self._append(cache, states, drafted[-1].tokens, position + i)
                said, states = self.finish(output)
            drafted.append(self.say(said, 1, draw).at(0))
        laws = None if draw is None else torch.cat([one.laws for one in drafted if one.laws is not None])
        return Proposal(torch.cat([one.tokens for one in drafted]), None, laws)

    def _grow(
        self,
        cache: "DraftCache",
        said: Tensor,
        states: Tensor,
        position: Tensor,
        depth: int,
        tree: Shape,
        draw: Draw | None,
    ) -> Proposal:
        context, level = cache.length, 0
        seen = torch.ones(1, context, dtype=torch.bool, device=said.device)  # of the cache, by each node given last

        def extend(tokens: Tensor, parents: Tensor) -> Said:
            """Runs the nodes, each of which sees the context, the nodes above it and itself."""
            nonlocal states, seen, level
            level += 1
            above = parents.clamp(min=0)  # the context is the only row of the first level
            own = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
            seen = torch.cat([seen[above], own], 1)
            output = self._append(cache, states[above], tokens, (position + level).expand(len(tokens)), seen)
            said, states = self.finish(output)
            return self.say(said, tree.width, draw)

        return tree.grow(depth, self.say(said, tree.width, draw).at(0), extend)

    def say(self, said: Tensor, width: int, draw: Draw | Drawn | None) -> Said:
        """`width` tokens behind each of said[n, H], the base's; see `pick`."""
        found = pick(self._logits(said), width, draw)
        if self.vocabulary is None:
            return found
        laws = found.laws
        if laws is not None:
            empty = laws.new_zeros(*laws.shape[:-1], self.target.vocab_size)
            laws = empty.index_copy(-1, self.vocabulary.to_target, laws)
        return Said(found.scores, self._to_target(found.tokens), laws)

    def _logits(self, said: Tensor) -> Tensor:
        logits = said @ self.output_weight.to(said.dtype).T
        return logits if self.logit_scale == 1.0 else logits * self.logit_scale

    def _to_target(self, tokens: Tensor) -> Tensor:
        return tokens if self.vocabulary is None else self.vocabulary.to_target[tokens]

    def _append(
        self,
        cache: "DraftCache",
        states: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Runs n rows behind the cache, which holds them afterwards -> the layers' output [n, H].

        mask[n, T]: which of the cache's rows, the new ones included, each sees; None: all, or what `causal` says.
        """
        embeddings = self.embed(token_ids)
        joined = self.join(states, embeddings)

        def attend(i: int, layer: DraftLayer, inputs: Tensor) -> Tensor:
            query = self.rotary(layer.self_attn.query(inputs), positions)
            key, value = layer.self_attn.key_value(inputs)
            keys, values = cache.append(i, self.rotary(key, positions), value)
            found = scaled_dot_product_attention(
                query.transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=causal and len(query) > 1,
                enable_gqa=True,
            )
            return found[0].transpose(0, 1).flatten(1)

        return self.run_layers(joined, embeddings, attend)


class _Walk:
    """The keys and values of one unrolled batch: base-fed rows first, then each draft position's own."""

    def __init__(self, drafter: Unrolled, document_ids: Tensor, positions: Tensor):
        self._drafter, self._documents, self._positions = drafter, document_ids, positions
        self._context: Chain = []
        self._mask: Mask = None

    def _attend(self, query: Tensor, rows: Tensor, layer: int, chain: Chain) -> Tensor:
        if self._mask is None:
            self._mask = mask_of(self._documents, query.dtype)
        return attend_to(query, rows, *self._context[layer], chain, self._documents, self._mask)

    def first(self, states: Tensor, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Draft position 0: states[B*T, H] and embeddings of every row -> outputs at the anchors `rows`."""
        drafter, last = self._drafter, len(self._drafter.layers) - 1
        every = torch.arange(len(states), device=states.device)

        def attend(i: int, layer: DraftLayer, inputs: Tensor) -> Tensor:
            key, value = layer.self_attn.key_value(inputs)
            self._context.append((drafter.rotary(key, self._positions), value))
            asking = rows if i == last else every
            query = layer.self_attn.query(inputs[asking] if i == last else inputs)
            query = drafter.rotary(query, self._positions[asking])
            return self._attend(query, asking, i, [])

        return drafter.run_layers(drafter.join(states, embeddings), embeddings, attend, rows)

    def next(
        self, states: Tensor, embeddings: Tensor, rows: Tensor, chain: list[Chain], k: int
    ) -> tuple[Tensor, list[Chain]]:
        """Draft position k > 0 at the anchors `rows` -> (outputs, chain[layer] with this position's own rows)."""
        drafter = self._drafter
        positions = self._positions[rows] + k
        longer: list[Chain] = []

        def attend(i: int, layer: DraftLayer, inputs: Tensor) -> Tensor:
            key, value = layer.self_attn.key_value(inputs)
            longer.append([*chain[i], (drafter.rotary(key, positions), value)])
            query = drafter.rotary(layer.self_attn.query(inputs), positions)
            return self._attend(query, rows, i, longer[i])

        return drafter.run_layers(drafter.join(states, embeddings), embeddings, attend), longer


@dataclass
class DraftCache:
    """Keys and values [kv, T, D] of each layer, in buffers that grow by doubling."""

    layers: int
    length: int = 0

    def __post_init__(self) -> None:
        self._keys: list[Tensor | None] = [None] * self.layers
        self._values: list[Tensor | None] = [None] * self.layers

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """key, value[n, kv, D] -> everything that the layer holds now. The last layer's rows count."""
        start = self.length
        stop = start + len(key)
        keys, values = self._room(self._keys, layer, key, stop), self._room(self._values, layer, value, stop)
        keys[:, start:stop] = key.transpose(0, 1)
        values[:, start:stop] = value.transpose(0, 1)
        if layer == self.layers - 1:
            self.length = stop
        return keys[:, :stop], values[:, :stop]

    def crop(self, length: int) -> None:
        """Forgets what stands behind `length`."""
        self.length = length

    @staticmethod
    def _room(buffers: list[Tensor | None], layer: int, rows: Tensor, stop: int) -> Tensor:
        old = buffers[layer]
        if old is None or old.shape[1] < stop:
            new = rows.new_empty(rows.shape[1], max(64, 2 * stop), rows.shape[2])
            if old is not None:
                new[:, : old.shape[1]] = old
            buffers[layer] = old = new
        return old
