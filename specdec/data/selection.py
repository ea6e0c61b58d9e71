"""Which prompts are kept, and why the others are not. Every rule, in its order: docs/data.md, "Prompts"."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from specdec.data.lengths import REFUSED
from specdec.data.overlap import Distinct, Guard
from specdec.data.prompt_table import PromptTable
from specdec.data.prompts import SPLITS, user_turns
from specdec.data.shingles import common, shingles
from specdec.data.telling import telling

SAMPLE = 10_000  # prompts by which it is told what is a template
DUPLICATE = "duplicate"
OVER_LIMIT = "over the limit of the split"


@dataclass(frozen=True)
class Rules:
    """limits: prompts of each split, None for all. near_duplicate: share of shingles, see `specdec.data.overlap`."""

    max_prompt_tokens: int
    near_duplicate: float
    limits: dict[str, int | None]


class Fates:
    """What became of N prompts: each stands, or was dropped once, for one reason."""

    def __init__(self, split: np.ndarray):
        self._split = split
        self._reasons = [""]
        self._code = np.zeros(len(split), np.uint16)  # place in _reasons

    def drop(self, rows: np.ndarray, reason: str) -> None:
        assert not self._code[rows].any(), f"dropped twice, now as {reason}"
        if reason not in self._reasons:
            self._reasons.append(reason)
        self._code[rows] = self._reasons.index(reason)

    @property
    def kept(self) -> np.ndarray:
        """bool[N]."""
        return self._code == 0

    def standing(self, split: str) -> np.ndarray:
        """The rows of a split that stand, in the order of the file."""
        return np.flatnonzero(self.kept & (self._split == SPLITS.index(split)))

    def dropped(self, split: str) -> dict[str, int]:
        """Reason -> prompts of a split."""
        counts = np.bincount(self._code[self._split == SPLITS.index(split)], minlength=len(self._reasons))
        return {reason: int(n) for reason, n in zip(self._reasons[1:], counts[1:], strict=True) if n}


def select(
    table: PromptTable,
    fates: Fates,
    lengths: np.ndarray,
    evaluation: dict[str, list[list[str]]],
    rules: Rules,
    say: Callable[[str], None],
) -> None:
    """Applies the rules to what stands. lengths[N]: in tokens. evaluation: file -> user turns of its prompts.

    Within a split prompts are taken by id until its limit is reached: what stands behind it is not looked at.
    """
    unique = fates.kept
    fates.drop(np.flatnonzero(unique & (lengths == REFUSED)), "refused by the chat template")
    fates.drop(np.flatnonzero(unique & (lengths > rules.max_prompt_tokens)), "longer than max_prompt_tokens")
    templates = _templates(table, fates)
    guard = Guard(rules.near_duplicate)
    for file, prompts in evaluation.items():
        sets = [shingles(turns) for turns in prompts]
        guard.add(f"overlaps the evaluation file {file}", sets, common(sets))
    for split in ("test", "validation", "train"):  # each guards itself against the ones behind it
        by = Distinct(rules.near_duplicate, templates) if split == "test" else guard
        kept = _take(table, fates, split, rules.limits[split], by, say)
        if split == "train":
            for _ in kept:  # not held: there may be millions
                pass
        else:
            guard.add(f"overlaps a {split} prompt", list(kept), templates)


def _templates(table: PromptTable, fates: Fates) -> np.ndarray:
    """The shingles that are so common in the dataset (in a sample of it) that they tell nothing."""
    sample = table.by_id(np.flatnonzero(fates.kept))[:SAMPLE]
    return common([s for sets in _shingled(table, sample) for s in sets])


def _take(
    table: PromptTable,
    fates: Fates,
    split: str,
    limit: int | None,
    by: Distinct | Guard,
    say: Callable[[str], None],
) -> Iterator[np.ndarray]:
    """Decides on the prompts of a split that stand, by id; the kept ones as shingles."""
    rows = table.by_id(fates.standing(split))
    room = len(rows) if limit is None else limit
    seen = 0
    for prompt, reason in _judged(table, rows, by, say, split):
        if room == 0:
            break
        if reason:
            fates.drop(rows[seen], reason)
        else:
            room -= 1
            yield prompt
        seen += 1
    fates.drop(rows[seen:], OVER_LIMIT)


def _judged(
    table: PromptTable, rows: np.ndarray, by: Distinct | Guard, say: Callable[[str], None], split: str
) -> Iterator[tuple[np.ndarray, str | None]]:
    """The rows' prompts as shingles, and why each is left out."""
    for sets in telling(say, f"{split} prompts compared", _shingled(table, rows), len):
        yield from zip(sets, by.reasons(sets), strict=True)


def _shingled(table: PromptTable, rows: np.ndarray) -> Iterator[list[np.ndarray]]:
    for _, texts in table.batches(rows):
        yield [shingles(user_turns(text["messages"])) for text in texts]
