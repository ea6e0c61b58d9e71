"""Synthetic rows to token sequences, and sequences to packed rows without cross-talk.

A packed row holds several whole conversations. Positions restart in each, from which transformers builds a
block-diagonal attention mask (a token sees earlier tokens of its own document only); document ids let the loss
stay inside one document. Padding is a document of its own, with id -1.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sequence:
    """token_ids[T]; loss_mask[T]: True on what the base answered."""

    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class PackedRow:
    """token_ids[L], loss_mask[L], document_ids[L] (-1 is padding), positions[L] (restart in each document)."""

    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    document_ids: NDArray[np.int64]
    positions: NDArray[np.int64]


def sequences(row: dict[str, Any]) -> list[Sequence]:
    """One sequence a conversation: a turn whose prompt continues the sequence so far is appended to it.

    Where it does not (a template that rewrites history), the turn starts a sequence of its own, so every answer
    is trained on exactly the tokens that the base saw.
    """
    found: list[tuple[list[int], list[bool]]] = []
    for segment in row["segments"]:
        prompt, answer = segment["prompt_token_ids"], segment["token_ids"]
        if found and prompt[: len(found[-1][0])] == found[-1][0]:
            ids, mask = found[-1]
        else:
            ids, mask = [], []
            found.append((ids, mask))
        mask += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids += prompt[len(ids) :] + answer
    return [Sequence(np.array(ids, dtype=np.int64), np.array(mask, dtype=bool)) for ids, mask in found]


def pack(found: Iterable[Sequence], length: int, pad_id: int) -> list[PackedRow]:
    """Best-fit decreasing: each sequence (cut at `length`) goes where the least room is left over."""
    ordered = sorted((cut(s, length) for s in found), key=len, reverse=True)
    rows: list[list[Sequence]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for sequence in ordered:
        place = bisect_left(room, (len(sequence), -1))
        if place == len(room):
            rows.append([])
            left, row = length, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(sequence)
        insort(room, (left - len(sequence), row))
    return [_packed(row, length, pad_id) for row in rows]


def cut(sequence: Sequence, length: int) -> Sequence:
    """The first `length` tokens."""
    return Sequence(sequence.token_ids[:length], sequence.loss_mask[:length])


def _packed(row: list[Sequence], length: int, pad_id: int) -> PackedRow:
    used = sum(len(s) for s in row)
    padding = length - used
    parts = [np.arange(len(s)) for s in row] + [np.arange(padding)]
    documents = [np.full(len(s), i) for i, s in enumerate(row)] + [np.full(padding, -1)]
    return PackedRow(
        np.concatenate([*(s.token_ids for s in row), np.full(padding, pad_id)]),
        np.concatenate([*(s.loss_mask for s in row), np.zeros(padding, dtype=bool)]),
        np.concatenate(documents),
        np.concatenate(parts),
    )
