"""Which prompts overlap: exact set similarity, by an inverted index over the few prompts of an evaluation.

Every training prompt streams past; only the evaluation prompts are held. See docs/data.md, "Duplicates".
"""

from collections.abc import Sequence

import numpy as np

from specdec.data.shingles import without

_ROUNDING = 1e-9


class ShingleIndex:
    """Shingle -> the prompts that have it. sets: of each prompt uint64, sorted, each once; sizes: their lengths."""

    def __init__(self, sets: Sequence[np.ndarray]):
        self.sets = sets
        self.sizes = np.array([len(s) for s in sets], dtype=np.int64)
        flat = np.concatenate([np.empty(0, np.uint64), *sets])
        order = np.argsort(flat, kind="stable")
        self._owners = np.repeat(np.arange(len(sets)), self.sizes)[order]
        self._keys, starts = np.unique(flat[order], return_index=True)
        self._ends = np.append(starts, len(flat))

    def shared(self, shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the prompts, ascending; how many of `shingles` each of them has too), of those with any."""
        places = np.searchsorted(self._keys, shingles)
        inside = places < len(self._keys)
        places, shingles = places[inside], shingles[inside]
        found = places[self._keys[places] == shingles]
        owners = [self._owners[self._ends[p] : self._ends[p + 1]] for p in found.tolist()]
        return np.unique(np.concatenate([np.empty(0, np.int64), *owners]), return_counts=True)


class Guard:
    """Evaluation prompts that a prompt must not contain: `threshold` or more of the shingles of one of them."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._sets: list[np.ndarray] = []
        self._reasons: list[str] = []
        self._index = ShingleIndex([])

    def add(self, reason: str, sets: Sequence[np.ndarray], templates: np.ndarray) -> None:
        """Evaluation prompts as shingles, and those that do not count; `reason` is told of what contains one."""
        self._sets += [without(s, templates) for s in sets]
        self._reasons += [reason] * len(sets)
        self._index = ShingleIndex(self._sets)

    def reasons(self, sets: Sequence[np.ndarray]) -> list[str | None]:
        """Why each of these prompts is left out (the first reason that was added), or None."""
        return [self._reason(s) for s in sets]

    def _reason(self, shingles: np.ndarray) -> str | None:
        numbers, counts = self._index.shared(shingles)
        contained = numbers[counts >= self._threshold * self._index.sizes[numbers] - _ROUNDING]
        return self._reasons[contained[0]] if len(contained) else None


class Distinct:
    """Evaluation prompts of which none resembles one before it.

    By Jaccard's measure, shared over all shingles of the two: a question that stands inside a longer one is another.
    """

    def __init__(self, threshold: float, templates: np.ndarray):
        self._threshold = threshold
        self._templates = templates
        self._kept: list[ShingleIndex] = []  # each of at least twice as many prompts as the next

    def reasons(self, sets: Sequence[np.ndarray]) -> list[str | None]:
        """Why each of these prompts, which come behind all before, is left out, or None."""
        block = ShingleIndex([without(s, self._templates) for s in sets])
        distinct: list[bool] = []
        for shingles in block.sets:
            here = [n for n in self._nearer(block, shingles) if n < len(distinct)]
            before = any(self._nearer(index, shingles) for index in self._kept)
            distinct.append(not before and not any(distinct[n] for n in here))
        self._keep([s for s, kept in zip(block.sets, distinct, strict=True) if kept])
        return [None if kept else "near-duplicate of a test prompt" for kept in distinct]

    def _keep(self, sets: list[np.ndarray]) -> None:
        """Indexes merge as they grow, so that each of n prompts is indexed log n times and not once a block."""
        while sets and self._kept and len(self._kept[-1].sets) < 2 * len(sets):
            sets = [*self._kept.pop().sets, *sets]
        if sets:
            self._kept.append(ShingleIndex(sets))

    def _nearer(self, index: ShingleIndex, shingles: np.ndarray) -> list[int]:
        """The prompts of an index that one resembles."""
        numbers, counts = index.shared(shingles)
        either = index.sizes[numbers] + len(shingles) - counts
        return numbers[counts >= self._threshold * either - _ROUNDING].tolist()
