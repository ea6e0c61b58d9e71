"""What every check of the certificate is told, and what it says."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from specdec.drafters import Drafter, Proposer, Shape, StaticTree, Tree
from specdec.errors import ModelError
from specdec.targets import Target

DYNAMIC = Tree(4, 3, 16)
STATIC = StaticTree.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 1, 0)])
SHAPES: dict[str, Shape | None] = {"chain": None, "dynamic tree": DYNAMIC, "static tree": STATIC}


@dataclass(frozen=True)
class Check:
    """told: the result in a line. figures: what it rests on, as JSON."""

    name: str
    passed: bool
    told: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is certified. near: a drafter that is often right and often wrong (`near_base`), with which every check
    runs too, so that a drafter of which little is accepted leaves no branch of verification untried. lean[V]: how
    much it favours each token, beside the base.

    prompts: token ids that fit the base's context. shapes: the forms of drafts that the base can verify.
    """

    target: Target
    drafter: Drafter
    near: Proposer
    lean: Tensor
    prompts: list[list[int]]
    shapes: dict[str, Shape | None]
    max_new_tokens: int
    seed: int = 0

    @property
    def proposers(self) -> dict[str, Proposer]:
        return {"drafter": self.drafter, "near the base": self.near}


def shapes_of(target: Target) -> tuple[dict[str, Shape | None], str]:
    """(the forms of drafts that this base can verify, what to say of them)."""
    try:
        target.check_trees()
    except ModelError as error:
        return {"chain": None}, f"chains only: {error}"
    return SHAPES, f"chains, dynamic trees ({DYNAMIC}), static trees ({len(STATIC.paths)} nodes)"
