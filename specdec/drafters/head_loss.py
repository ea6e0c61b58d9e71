"""The loss of draft states through an output layer, for large vocabularies: no logits outlive their chunk.

Draft position k says, from `states[k]`, a distribution p over the draft vocabulary for a token whose hard label is
known and for which the base itself says q. Four losses (row by row, then a mean):

    cross_entropy   -log p[label]                                            hard labels
    kl              sum q (log q - log p) over the draft vocabulary          distillation (forward KL)
    overlap         -log a,  a = sum min(p, q)                               a is the chance that a sampled draft is
    hybrid          w kl + (1 - w) (1 - a),  w = exp(-3 a), a constant       accepted (Leviathan et al., 2023)

The last two are after "LK losses" (2026). q is never renormalised: what the base says outside the draft vocabulary
counts as missed. All gradients with respect to logits have a closed form, so they are taken in the forward pass,
chunk by chunk: nothing is recomputed, and the base's logits are made once for all draft positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**22  # of one [rows, vocabulary] matrix in float32: 16 MiB, and a handful of them at once
LEAST_ROWS = {"cpu": 256}  # fewer make the products slow, however large the vocabulary
LEAST_ROWS_ON_A_GPU = 1024
TOP_K = 4
HYBRID_SHARPNESS = 3.0


@dataclass(frozen=True)
class DraftVocabulary:
    """The base's tokens that a drafter can say. to_target[Vd]: ascending ids; to_draft[V]: -1 where it cannot."""

    to_target: Tensor
    to_draft: Tensor

    @classmethod
    def of(cls, to_target: Tensor, vocab_size: int) -> "DraftVocabulary":
        to_draft = torch.full((vocab_size,), -1, dtype=torch.long, device=to_target.device)
        to_draft[to_target] = torch.arange(len(to_target), device=to_target.device)
        return cls(to_target, to_draft)


@dataclass
class Job:
    """What `head_loss` works on, and where it leaves what it saw.

    places[k][n_k]: flat index of the token that each row of states[k] drafts, ascending; each place of k+1 is one of
    k, or of another position. labels[M]: all tokens, flat. teacher(places) -> the base's logits for those tokens, or
    None for hard labels without a look at the base. factors[K]: weights of the sums of losses.
    measure: also top-k agreement and (with a teacher) overlap.
    Afterwards: rights[k][n_k]: the most probable draft is the label; sums[name][K].
    """

    kind: str
    places: list[Tensor]
    labels: Tensor
    teacher: Callable[[Tensor], Tensor] | None
    factors: Tensor
    vocabulary: DraftVocabulary | None = None
    scale: float = 1.0
    measure: bool = False
    rights: list[Tensor] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)


def head_loss(job: Job, states: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Sum over k of factors[k] * sum of losses of states[k][n_k, H] through weights[k][Vd, H] (scalar, float32).

    Logits are `scale * states @ weights.T`. A tensor that stands several times in `weights` is one output layer.
    """
    own = list({id(w): w for w in weights}.values())
    layer = [next(i for i, w in enumerate(own) if w is weight) for weight in weights]
    tensors = [*states, *own]
    if not torch.is_grad_enabled():  # a Function is told that they need gradients all the same
        tensors = [t.detach() for t in tensors]
    loss: Tensor = _HeadLoss.apply(job, layer, len(states), *tensors)
    return loss


class _HeadLoss(Function):
    @staticmethod
    def forward(ctx: Any, job: Job, layer: list[int], count: int, *tensors: Tensor) -> Tensor:
        device = tensors[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[count].dtype
        needs = ctx.needs_input_grad[3:]
        with torch.autocast(device, enabled=False):
            states = [s.to(dtype) for s in tensors[:count]]
            weights = [w.to(dtype) for w in tensors[count:]]
            exact = torch.promote_types(dtype, torch.float32)  # a mean's gradients are too small for float16
            grads = [
                torch.zeros_like(t, dtype=exact) if need else None for t, need in zip(tensors, needs, strict=True)
            ]
            _start(job, states)
            factors = job.factors.tolist()
            scratch = _Scratch(_chunk_rows(job, weights[0]), weights[0])
            for rows, said in _chunks(job, scratch.rows):
                for k, (first, last) in enumerate(rows):
                    if first == last:
                        continue
                    part, weight = states[k][first:last], weights[layer[k]]
                    logits = scratch.logits(part, weight, job.scale)
                    own = said.of(job.places[k][first:last]) if said is not None else None
                    gradient = _rows(job, k, slice(first, last), logits, scratch.second(logits), own, any(needs))
                    if gradient is None:
                        continue
                    gradient, factor = gradient.to(dtype), factors[k] * job.scale
                    if (to_states := grads[k]) is not None:
                        _set_product(to_states[first:last], gradient, weight, factor)
                    if (to_weight := grads[count + layer[k]]) is not None:
                        _add_product(to_weight, gradient, part, factor)
            total: Tensor = (job.factors * job.sums["loss"]).sum()
        ctx.gradients = grads
        ctx.dtypes = [t.dtype for t in tensors]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss can go backward once")
        scaled = [
            g.mul_(gradient).to(dtype) if g is not None else None
            for g, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return None, None, None, *scaled


class _Scratch:
    """Two matrices [rows, Vd] in which all chunks are worked on: fresh ones would cost more than what is in them."""

    def __init__(self, rows: int, weight: Tensor):
        self.rows = rows
        kind = torch.float64 if weight.dtype is torch.float64 else torch.float32
        self._pair = [torch.empty(rows, weight.shape[0], device=weight.device, dtype=kind) for _ in range(2)]

    def logits(self, part: Tensor, weight: Tensor, scale: float) -> Tensor:
        """part[n, H], weight[Vd, H] -> [n, Vd]."""
        logits = self._pair[0][: len(part)]
        if part.dtype is logits.dtype:
            torch.mm(part, weight.T, out=logits)
        else:
            logits.copy_(part @ weight.T)
        return logits if scale == 1.0 else logits.mul_(scale)

    def second(self, logits: Tensor) -> Tensor:
        return self._pair[1][: len(logits)]


def _set_product(out: Tensor, gradient: Tensor, weight: Tensor, factor: float) -> None:
    """out[n, H] = factor * gradient[n, Vd] @ weight[Vd, H]."""
    if gradient.dtype is out.dtype:
        torch.mm(gradient, weight, out=out)
    else:
        out.copy_(gradient @ weight)
    out.mul_(factor)


def _add_product(total: Tensor, gradient: Tensor, part: Tensor, factor: float) -> None:
    """total[Vd, H] += factor * gradient[n, Vd].T @ part[n, H], summed in the precision of `total`."""
    if gradient.dtype is total.dtype:
        total.addmm_(gradient.T, part, alpha=factor)
    else:
        total.add_(gradient.T @ part, alpha=factor)


def _start(job: Job, states: list[Tensor]) -> None:
    device = states[0].device
    names = ["loss", "accuracy"]
    if job.measure:
        names += [f"top_{TOP_K}"] + (["overlap", "agreement"] if job.teacher else [])
    job.sums = {name: torch.zeros(len(states), device=device) for name in names}
    job.rights = [torch.zeros(len(s), dtype=torch.bool, device=device) for s in states]


@dataclass(frozen=True)
class _Said:
    """The base's distribution at ascending places[c]. q[c, Vd]; entropy[c] = sum q log q; mass[c] = sum q."""

    places: Tensor
    q: Tensor
    entropy: Tensor
    mass: Tensor
    top: Tensor

    def of(self, places: Tensor) -> "_Said":
        if len(places) == len(self.places):
            return self
        at = torch.searchsorted(self.places, places)
        return _Said(places, self.q[at], self.entropy[at], self.mass[at], self.top[at])


def _chunk_rows(job: Job, weight: Tensor) -> int:
    width = weight.shape[0] if job.vocabulary is None or job.teacher is None else len(job.vocabulary.to_draft)
    return max(LEAST_ROWS.get(weight.device.type, LEAST_ROWS_ON_A_GPU), CHUNK_ELEMENTS // width)


def _chunks(job: Job, size: int) -> Iterator[tuple[list[tuple[int, int]], _Said | None]]:
    """(rows of each position, what the base says there), for stretches of `size` places."""
    every = job.places[0] if len(job.places) == 1 else torch.cat(job.places).unique()
    borders = every[::size].contiguous()
    starts = [[*torch.searchsorted(p, borders).tolist(), len(p)] for p in job.places]
    for i in range(len(borders)):
        rows = [(s[i], s[i + 1]) for s in starts]
        places = every[i * size : (i + 1) * size]
        yield rows, _ask(job, places) if job.teacher else None


def _ask(job: Job, places: Tensor) -> _Said:
    assert job.teacher
    logits = job.teacher(places)
    highest, top = logits.max(-1)
    q = logits.softmax(-1)
    normaliser = highest - q.gather(-1, top[:, None]).squeeze(-1).log()
    if job.vocabulary is None:
        mass = torch.ones_like(highest)
    else:
        q, logits = q[:, job.vocabulary.to_target], logits[:, job.vocabulary.to_target]
        mass = q.sum(-1)
    entropy = torch.linalg.vecdot(q, logits) - mass * normaliser
    return _Said(places, q, entropy, mass, top)


def _rows(
    job: Job, k: int, rows: slice, logits: Tensor, p: Tensor, said: _Said | None, differentiate: bool
) -> Tensor | None:
    """Adds up the figures of some rows of position k; their gradient with respect to logits, in p or logits."""
    labels = job.labels[job.places[k][rows]]
    ids = labels if job.vocabulary is None else job.vocabulary.to_draft[labels]
    highest, best = logits.max(-1)
    torch.softmax(logits, -1, out=p)
    normaliser = highest - p.gather(-1, best[:, None]).squeeze(-1).log()
    job.rights[k][rows] = best == ids
    job.sums["accuracy"][k] += (best == ids).sum()
    if job.measure:
        _measure(job, k, logits, p, best, ids, said)
    if job.kind == "cross_entropy":
        known, label = ids >= 0, ids.clamp(min=0)[:, None]
        picked = logits.gather(-1, label).squeeze(-1)
        job.sums["loss"][k] += torch.where(known, normaliser - picked, 0.0).sum()
        if not differentiate:
            return None
        p.scatter_add_(-1, label, -torch.ones_like(p[:, :1]))
        return p if job.vocabulary is None else p.mul_(known[:, None])
    assert said is not None
    mass = None if job.vocabulary is None else said.mass[:, None]
    divergence = overlap = share = torch.zeros_like(highest)
    if job.kind != "overlap":
        divergence = said.entropy - logits.mul_(said.q).sum(-1) + said.mass * normaliser
    if job.kind != "kl":
        overlap = torch.minimum(p, said.q, out=logits).sum(-1).clamp(min=1e-9)
        share = torch.exp(-HYBRID_SHARPNESS * overlap)
    job.sums["loss"][k] += {
        "kl": lambda: divergence,
        "overlap": lambda: -overlap.log(),
        "hybrid": lambda: share * divergence + (1 - share) * (1 - overlap),
    }[job.kind]().sum()
    if not differentiate:
        return None
    if job.kind == "kl":
        return (p if mass is None else p.mul_(mass)).sub_(said.q)
    # d overlap / d logits = p * (below - sum of p below), where `below` marks p < q
    rising = torch.where(p < said.q, p, 0.0)
    rising = rising.sub_(p * rising.sum(-1, keepdim=True))
    if job.kind == "overlap":
        return rising.div_(-overlap[:, None])
    matching = (p if mass is None else p.mul_(mass)).sub_(said.q)
    return matching.mul_(share[:, None]).sub_(rising.mul_((1 - share)[:, None]))


def _measure(job: Job, k: int, logits: Tensor, p: Tensor, best: Tensor, ids: Tensor, said: _Said | None) -> None:
    """Figures of validation: whether the label is among the first few, and what the base itself would accept."""
    job.sums[f"top_{TOP_K}"][k] += (logits.topk(min(TOP_K, logits.shape[-1])).indices == ids[:, None]).sum()
    if said is not None:
        said_best = best if job.vocabulary is None else job.vocabulary.to_target[best]
        job.sums["agreement"][k] += (said_best == said.top).sum()
        job.sums["overlap"][k] += torch.minimum(p, said.q).sum()
