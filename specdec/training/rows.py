"""From answered conversations to the packed rows of a training."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.data.packing import PackedRow, pack, sequences
from specdec.errors import ConfigError, DataError
from specdec.targets import Target


def pack_rows(
    rows: Iterable[dict[str, Any]],
    where: str,
    split: str,
    length: int,
    target: Target,
    say: Callable[[str], None],
) -> list[PackedRow]:
    """rows: with `segments` of token ids, as `data/synthetic/` has them. where: their file, for messages.

    Raises ConfigError when rows are longer than the base takes, DataError when there is none, or one with tokens that
    the base does not have.
    """
    if length > target.max_positions:
        raise ConfigError(f"max_length is {length}, and {target.name} takes {target.max_positions} positions at most")
    found = [s for row in rows for s in sequences(row)]
    tokens, answers = sum(map(len, found)), sum(int(s.loss_mask.sum()) for s in found)
    if not answers:
        raise DataError(f"{where} has no answers: let the base answer some first")
    highest = max(int(s.token_ids.max()) for s in found if len(s))
    if highest >= target.vocab_size:
        raise DataError(
            f"{where} holds the token {highest}, and {target.name} has {target.vocab_size}: another base answered"
        )
    packed = pack(found, length, target.tokenizer.pad_token_id or 0)
    used = sum(int((row.document_ids >= 0).sum()) for row in packed)
    cut = f", {tokens - used:,} of them cut off" if used < tokens else ""
    say(
        f"{split}: {len(found):,} conversations, {tokens:,} tokens{cut} ({answers:,} of answers) "
        f"in {len(packed):,} rows of {length}, {1 - used / (len(packed) * length):.1%} padding"
    )
    return packed


def count_answer_tokens(rows: Iterable[PackedRow], vocab_size: int) -> Tensor:
    """int[V]: how often each token stands in an answer (never in a prompt, never in padding)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for row in rows:
        counts += np.bincount(row.token_ids[row.loss_mask], minlength=vocab_size)
    return torch.from_numpy(counts)
