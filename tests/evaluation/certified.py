"""What is certified in tests: the tiny base, a drafter, a few prompts."""

from collections.abc import Iterator

import torch

from specdec.drafters import Drafter
from specdec.evaluation.check import Check, Subject, shapes_of
from specdec.evaluation.near import near_base
from specdec.targets import Target
from tests.drafters.test_trees import moved

LIMIT = 24


def prompts(target: Target, count: int = 3) -> list[list[int]]:
    random = torch.Generator().manual_seed(5)
    return [torch.randint(6, target.vocab_size, (8 + 3 * i,), generator=random).tolist() for i in range(count)]


def subject(target: Target, drafter: Drafter | None = None, seed: int = 0) -> Subject:
    given = prompts(target)
    shapes, _ = shapes_of(target)
    near, lean = near_base(target, given)
    return Subject(target, drafter or moved(target, "medusa"), near, lean, given, shapes, LIMIT, seed)


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}
