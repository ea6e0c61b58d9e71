"""The exact law of what verification emits, on a toy base of three tokens, by enumerating every random outcome.

Base and drafter are tables: the law of a token behind the context, and behind each first token. What is enumerated
runs through the real `specdec.decoding.verify`; everything is in float64. The law of the first two emitted tokens
must be the base's, whatever was proposed: the total variation between the two is what is returned.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from specdec.decoding import verify
from specdec.drafters import Proposal, Sampling, StaticTree
from specdec.drafters.sampling import successive_laws
from specdec.drafters.trees import ROOT

TOKENS = 3
SAMPLINGS = (
    Sampling(),
    Sampling(1.0),
    Sampling(0.7),
    Sampling(1.3, top_k=2),
    Sampling(1.0, top_p=0.8),
    Sampling(0.8, top_k=2, top_p=0.9),
)
DRAWN = {
    "chain": StaticTree.of([(0,), (0, 0)]),
    "two children": StaticTree.of([(0,), (1,)]),
    "all children": StaticTree.of([(0,), (1,), (2,)]),
    "tree": StaticTree.of([(0,), (1,), (0, 0), (1, 0)]),
    "a rank left out": StaticTree.of([(0,), (2,), (0, 1)]),
}


def tables(seed: int) -> tuple[Tensor, Tensor]:
    """(logits[V] behind the context, logits[V, V] behind each first token), of a random base or drafter."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(TOKENS, dtype=torch.float64, generator=random),
        torch.randn(TOKENS, TOKENS, dtype=torch.float64, generator=random),
    )


def choices_error(sampling: Sampling, seed: int = 0) -> float:
    """The largest total variation over every chain of two and every two-level tree, drafts being choices."""
    first, second = (sampling.probabilities(logits) for logits in tables(seed))
    return max(_distance(_law_of_choices(proposal, first, second), first, second) for proposal in _proposals())


def draws_error(sampling: Sampling, form: StaticTree, seed: int = 0) -> float:
    """The total variation over every draft that a random drafter may draw in this form."""
    first, second = (sampling.probabilities(logits) for logits in tables(seed))
    law = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    drafter = tuple(sampling.probabilities(logits) for logits in tables(seed + 1))
    for proposal, probability in _drawn(form, drafter):
        law += probability * _law_of_draws(proposal, first, second)
    return _distance(law, first, second)


def _distance(law: Tensor, first: Tensor, second: Tensor) -> float:
    return float((law - first[:, None] * second).abs().sum() / 2)


def _behind(proposal: Proposal, first: Tensor, second: Tensor) -> Tensor:
    """[N+1, V]: the base's law behind the context and behind each node. Behind a second token it is not looked at."""
    rows = [first]
    for place, token in enumerate(proposal.token_ids.tolist()):
        rows.append(second[token] if _parents(proposal)[place] == ROOT else torch.full_like(first, 1 / TOKENS))
    return torch.stack(rows)


def _parents(proposal: Proposal) -> list[int]:
    if proposal.parents is None:
        return list(range(ROOT, len(proposal.token_ids) - 1))
    return proposal.parents.tolist()


def _emit(law: Tensor, emitted: list[int], following: Tensor, probability: float, second: Tensor) -> None:
    """Adds what a verdict says about the first two tokens. following[V]: the law of the token behind `emitted`."""
    if len(emitted) >= 2:
        law[emitted[0], emitted[1]] += probability
    elif emitted:
        law[emitted[0]] += probability * following
    else:  # one token is emitted: the next pass starts from it
        law += probability * following[:, None] * second


# ---------------------------------------------------------------- choices


def _proposals() -> Iterator[Proposal]:
    """Chains of two, and trees: up to three first tokens in every order, each with up to two behind it."""
    for pair in itertools.product(range(TOKENS), repeat=2):
        yield Proposal(torch.tensor(pair))
    for width in (1, 2, 3):
        for first in itertools.permutations(range(TOKENS), width):
            for behind in itertools.product([(), (1,), (2, 0)], repeat=width):
                tokens, parents = list(first), [ROOT] * width
                for place, following in enumerate(behind):
                    tokens += following
                    parents += [place] * len(following)
                yield Proposal(torch.tensor(tokens), torch.tensor(parents))


def _law_of_choices(proposal: Proposal, first: Tensor, second: Tensor) -> Tensor:
    """Every outcome of the base's own choices behind the context and behind each first token."""
    law = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    base = _behind(proposal, first, second)
    asked = [0] + [place + 1 for place, parent in enumerate(_parents(proposal)) if parent == ROOT]
    for outcome in itertools.product(range(TOKENS), repeat=len(asked)):
        chosen = torch.zeros(len(base), dtype=torch.long)
        chosen[asked] = torch.tensor(outcome)
        probability = float(base[asked].gather(1, chosen[asked, None]).prod())
        if probability == 0:
            continue
        path = verify.accepted_path(proposal, chosen)
        last = int(verify.row_behind(path))
        following = torch.nn.functional.one_hot(chosen[last], TOKENS).double()
        _emit(law, proposal.token_ids[path].tolist(), following, probability, second)
    return law


# ---------------------------------------------------------------- draws


def _drawn(form: StaticTree, drafter: tuple[Tensor, ...]) -> Iterator[tuple[Proposal, float]]:
    """Every proposal of this form, with its probability; ranks that are not in the form are drawn all the same."""
    first, second = drafter
    nodes: list[tuple[int, ...]] = [(), *sorted({path[:-1] for path in form.paths if len(path) > 1})]
    orders = list(itertools.permutations(range(TOKENS)))
    for drawn in itertools.product(orders, repeat=len(nodes)):
        order = dict(zip(nodes, drawn, strict=True))
        tokens, laws, probability = [], [], 1.0
        for node in nodes:
            law = (first if not node else second[order[()][node[0]]])[None]
            successive = successive_laws(law, torch.tensor([order[node]]))[0]
            probability *= _chance(successive, order[node])
        if probability == 0:
            continue
        for path in form.paths:
            law = (first if len(path) == 1 else second[order[()][path[0]]])[None]
            tokens.append(order[path[:-1]][path[-1]])
            laws.append(successive_laws(law, torch.tensor([order[path[:-1]]]))[0, path[-1]])
        places = {path: i for i, path in enumerate(form.paths)}
        parents = torch.tensor([places.get(path[:-1], ROOT) for path in form.paths])
        yield Proposal(torch.tensor(tokens), parents, torch.stack(laws)), probability


def _chance(successive: Tensor, order: tuple[int, ...]) -> float:
    """That tokens are drawn in this order; where nothing was left to draw, any of the others comes."""
    chance = 1.0
    for place, (law, token) in enumerate(zip(successive, order, strict=True)):
        chance *= float(law[token]) if law.sum() > 0 else 1 / (TOKENS - place)
    return chance


def _law_of_draws(proposal: Proposal, first: Tensor, second: Tensor) -> Tensor:
    """Every outcome of keeping and refusing: a node is kept for uniforms below its chance, and at it no more."""
    law = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    base = _behind(proposal, first, second)
    chances = torch.tensor(_chances(proposal, base), dtype=torch.float64)
    below = torch.nextafter(chances, torch.zeros_like(chances))
    for kept in itertools.product((True, False), repeat=len(chances)):
        decided = torch.tensor(kept)
        probability = float(torch.where(decided, chances, 1 - chances).prod())
        if probability == 0:
            continue
        took, left = verify.rejection(proposal, base, torch.where(decided, below, chances))
        path = verify.deepest(proposal, took)
        _emit(law, proposal.token_ids[path].tolist(), left[int(verify.row_behind(path))], probability, second)
    return law


def _chances(proposal: Proposal, base: Tensor) -> list[float]:
    """min(1, p(x) / q(x)) of each node, p being what the refused children in front of it left: plainly written."""
    assert proposal.laws is not None
    chances = []
    parents = _parents(proposal)
    for place, token in enumerate(proposal.token_ids.tolist()):
        p = base[parents[place] + 1]
        for other in range(place):
            if parents[other] == parents[place]:
                rest = (p - proposal.laws[other]).clamp(min=0)
                p = rest / rest.sum() if rest.sum() > 0 else p
        q = proposal.laws[place]
        chances.append(min(1.0, float(p[token] / q[token])) if q[token] > 0 else 0.0)
    return chances
