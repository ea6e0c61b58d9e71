"""How many tokens the prompts have, and how these lengths are distributed."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from specdec.data.conversations import Message
from specdec.data.prompt_table import PromptTable
from specdec.data.prompts import SPLITS, batch_prompt_ids, template_refusal
from specdec.data.telling import telling
from specdec.errors import ModelError

UNKNOWN = -1  # of a row that was not asked for
REFUSED = 0  # by the chat template (some take no system turn)
BINS = 16  # equal ones up to the limit


def token_lengths(table: PromptTable, rows: np.ndarray, tokenizer: Any, say: Callable[[str], None]) -> np.ndarray:
    """int32[N]: the tokens of each of these rows as the base reads it; REFUSED, or UNKNOWN for the others."""
    lengths = np.full(len(table), UNKNOWN, np.int32)
    for part, texts in telling(say, "prompts measured", table.batches(rows), lambda batch: len(batch[0])):
        lengths[part] = _lengths(tokenizer, [text["messages"] for text in texts])
    refused = np.flatnonzero(lengths == REFUSED)
    if len(refused):
        error = template_refusal(tokenizer, table.texts[int(refused[0])]["messages"])
        why = repr(error) if error else "an empty text"
        say(f"prompts that the chat template refuses: {len(refused):,}, the first with {why}")
    return lengths


def _lengths(tokenizer: Any, conversations: list[list[Message]]) -> list[int]:
    try:
        return [len(ids) for ids in batch_prompt_ids(tokenizer, conversations)]
    except (ModelError, MemoryError):
        raise
    except Exception:  # by one of them: halves find it
        if len(conversations) > 1:
            half = len(conversations) // 2
            return _lengths(tokenizer, conversations[:half]) + _lengths(tokenizer, conversations[half:])
        if template_refusal(tokenizer, conversations[0]) is None:  # then it was not the template
            raise
        return [REFUSED]


def length_bins(limit: int) -> list[tuple[int, int | None]]:
    """(from, to) in tokens, both included: up to BINS equal ones below the limit, three wider ones above it."""
    inner = sorted({-(-limit * i // BINS) for i in range(1, BINS + 1)} | {0})
    edges = [*inner, 2 * limit, 4 * limit]
    bounded: list[tuple[int, int | None]] = [(a + 1, b) for a, b in pairwise(edges)]
    return [*bounded, (edges[-1] + 1, None)]


def length_table(lengths: np.ndarray, split: np.ndarray, kept: np.ndarray, limit: int) -> list[dict[str, Any]]:
    """One row a bin: {"from", "to", split: {"prompts", "kept"}}; lengths[N], split[N], kept[N] (bool).

    prompts: all that the template took, duplicates not counted twice.
    """
    return [
        {"from": low, "to": high}
        | {name: _in_bin(lengths, kept, split == place, low, high) for place, name in enumerate(SPLITS)}
        for low, high in length_bins(limit)
    ]


def _in_bin(lengths: np.ndarray, kept: np.ndarray, here: np.ndarray, low: int, high: int | None) -> dict[str, int]:
    inside = here & (lengths >= low) & (lengths <= (high or np.inf))
    return {"prompts": int(inside.sum()), "kept": int((inside & kept).sum())}


def percentiles(lengths: np.ndarray) -> dict[str, float]:
    """The median, the 90th and 99th percentile and the maximum of lengths[n], n > 0."""
    return dict(zip(("p50", "p90", "p99", "max"), np.percentile(lengths, [50, 90, 99, 100]).tolist(), strict=True))
