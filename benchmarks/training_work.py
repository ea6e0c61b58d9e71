"""What `benchmarks.training` trains on: the same conversations, packed and padded."""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specdec.config import METHOD_SECTIONS, validated
from specdec.config.defaults import METHOD_DEFAULTS
from specdec.data.conversations import RowCount, read_conversations
from specdec.data.packing import PackedRow, Sequence, cut, pack, sequences
from specdec.data.rendering import render
from specdec.drafters import Drafter, new_drafter
from specdec.io import read_jsonl
from specdec.targets import Target
from specdec.training.features import Batch, collate
from tests.tiny import write_base

CHOICE = 4  # times as much data is packed as is taken: rows fill up as well as those of a whole training
FIRST_WORD = 6  # of the random base's tokenizer: behind the special tokens


@dataclass(frozen=True)
class Work:
    """The same conversations for all: packed rows and padded batches, one of each a step."""

    target: Target
    settings: Any
    options: argparse.Namespace
    packed: list[list[PackedRow]]
    padded: list[Batch]

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Work":
        target = load_base(options, options.dtype)
        random = np.random.default_rng(0)
        count = options.rows * options.steps
        wanted = enough(conversations(options, target), options.length, CHOICE * count * options.length)
        rows = pack(wanted, options.length, 0)
        if len(rows) < count:
            sys.exit(f"the data fills {len(rows)} rows, and {count} are wanted: lower --steps or --rows")
        rows = [rows[i] for i in random.permutation(len(rows))[:count]]
        packed = [rows[i : i + options.rows] for i in range(0, count, options.rows)]
        single = [document for row in rows for document in documents(row)]
        borders = np.linspace(0, len(single), options.steps + 1).astype(int)
        order = [single[i] for i in random.permutation(len(single))]
        padded = [padded_batch(order[start:stop]) for start, stop in pairwise(borders)]
        return cls(target, method_settings(options), options, packed, padded)

    @property
    def rows(self) -> list[PackedRow]:
        return [row for step in self.packed for row in step]

    @property
    def answer_tokens(self) -> int:
        return sum(int(row.loss_mask.sum()) for row in self.rows)

    def padding(self, name: str) -> float:
        """Share of the positions that a variant runs over."""
        batches = self.padded if name == "reference" else [collate(rows) for rows in self.packed]
        real = sum(int((batch["document_ids"] >= 0).sum()) for batch in batches)
        return 1 - real / sum(batch["token_ids"].numel() for batch in batches)

    def told(self) -> str:
        lengths = sorted(int((row >= 0).sum()) for batch in self.padded for row in batch["document_ids"])
        return (
            f"{len(lengths)} conversations of {lengths[0]} to {lengths[-1]} tokens (median "
            f"{statistics.median(lengths):.0f}), {sum(lengths):,} tokens, {self.answer_tokens:,} of answers; a step "
            f"is {self.options.rows} packed rows of {self.options.length}, or about "
            f"{len(lengths) / self.options.steps:.1f} conversations"
        )


def load_base(options: argparse.Namespace, dtype: str) -> Target:
    return Target.from_pretrained(options.base or options.folder / "base", dtype, options.device)


def write_random_base(options: argparse.Namespace) -> None:
    heads = options.hidden // options.head_size
    write_base(
        options.folder / "base",
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=options.head_size,
        max_position_embeddings=2 * options.length,
        initializer_range=1.6 / options.hidden**0.5,  # answers that are neither certain nor all alike
    )


def method_settings(options: argparse.Namespace) -> Any:
    """The defaults; an EAGLE without noise, which would be another one in every variant."""
    steps = "num_heads" if options.method == "medusa" else "unroll_steps"
    own = {steps: options.unroll_steps} if options.unroll_steps else {}
    quiet = {"input_noise": 0.0} if options.method == "eagle" else {}
    values = {**METHOD_DEFAULTS[options.method], **own, **quiet}
    return validated(METHOD_SECTIONS[options.method], values, "command line")


def fresh_drafter(target: Target, settings: Any) -> Drafter:
    torch.manual_seed(0)
    return new_drafter(target, settings)


def conversations(options: argparse.Namespace, target: Target) -> Iterator[Sequence]:
    """Those of the file, shuffled; random ones without end when there is none."""
    random = np.random.default_rng(1)
    if options.data is not None:
        found = [s for row in read_rows(options.data, target) for s in sequences(row)]
        yield from (found[i] for i in random.permutation(len(found)))
        return
    while True:
        prompt = int(np.clip(random.lognormal(np.log(options.length / 10), 0.9), 4, options.length / 2))
        answer = int(np.clip(random.lognormal(np.log(options.length / 7), 0.8), 4, options.length))
        ids = random.integers(FIRST_WORD, target.vocab_size, prompt + answer)
        yield Sequence(ids, np.arange(prompt + answer) >= prompt)


def read_rows(file: Path, target: Target) -> list[dict[str, Any]]:
    """Rows with `segments`: the file's own, or what the chat template makes of its conversations."""
    with file.open() as lines:
        if '"segments"' in lines.readline():
            return list(read_jsonl(file))
    return list(render(target.tokenizer, read_conversations(file, RowCount()), target.stop_ids))


def enough(found: Iterator[Sequence], length: int, tokens: int) -> list[Sequence]:
    """The first ones that hold so many tokens together, cut, without those of which no answer is left."""
    taken: list[Sequence] = []
    for sequence in found:
        sequence = cut(sequence, length)
        if sequence.loss_mask.any():
            taken.append(sequence)
            tokens -= len(sequence)
        if tokens <= 0:
            break
    return taken


def documents(row: PackedRow) -> Iterator[Sequence]:
    """The conversations of a packed row."""
    for i in range(row.document_ids.max() + 1):
        own = row.document_ids == i
        yield Sequence(row.token_ids[own], row.loss_mask[own])


def padded_batch(found: list[Sequence]) -> Batch:
    """One conversation a row, padded to the longest."""
    longest = max(map(len, found))
    return collate([pack([sequence], longest, 0)[0] for sequence in found])
