"""All prompts of a dataset: their texts on the disk, memory-mapped by `datasets`, and a few bytes of each in memory.

A million conversations of a few kilobytes do not fit a small machine; their ids, splits and lengths do.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from specdec.data.prompts import SPLITS, Prompt, split_of

FEATURES = Features(
    {
        "id": Value("string"),
        "category": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),
    }
)
BATCH_ROWS = 512
BATCH_CHARACTERS = 1 << 18  # bounds what a batch takes, whatever the length of its rows


@dataclass(frozen=True)
class PromptTable:
    """texts: rows as in `data/prompts/*.jsonl`, N of them in the order of the file, duplicates too.

    ids[N, 2]: the first 16 bytes of each id as numbers, in the order of the ids. split[N]: place in SPLITS.
    characters[N]: of the messages.
    """

    texts: Dataset
    ids: np.ndarray
    split: np.ndarray
    characters: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    def by_id(self, rows: np.ndarray) -> np.ndarray:
        """The rows ordered by id (a hash, so a fair sample from the front), equal ids as in the file."""
        return rows[np.lexsort((self.ids[rows, 1], self.ids[rows, 0]))]

    def duplicates(self) -> np.ndarray:
        """The rows whose id stood in the file before."""
        order = self.by_id(np.arange(len(self)))
        again = np.append(False, (self.ids[order[1:]] == self.ids[order[:-1]]).all(axis=1))[: len(self)]
        return order[again]

    def batches(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[dict[str, Any]]]]:
        """(numbers, texts) of these rows in this order, a few at a time."""
        sizes = np.cumsum(self.characters[rows], dtype=np.int64) // BATCH_CHARACTERS
        counts = np.arange(len(rows)) // BATCH_ROWS
        cuts = np.flatnonzero((np.diff(sizes) != 0) | (np.diff(counts) != 0)) + 1
        for part in np.split(rows, cuts) if len(rows) else []:
            columns = self.texts[part.tolist()]
            yield part, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_table(prompts: Iterable[Prompt], validation_share: float, test_share: float, file: Path) -> PromptTable:
    """Writes the prompts to an Arrow file, one pass, and opens it."""
    file.unlink(missing_ok=True)  # and not overwritten: an older table may still read it
    ids, split, characters = bytearray(), bytearray(), bytearray()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, FEATURES.arrow_schema) as writer:
        for block in _blocks(prompts):
            for prompt in block:
                ids += bytes.fromhex(prompt.id)[:16]
                split.append(SPLITS.index(split_of(prompt, validation_share, test_share)))
                characters += np.uint32(prompt.characters).tobytes()
            rows = [prompt.as_row() for prompt in block]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema))
    return PromptTable(
        Dataset.from_file(str(file)),
        np.frombuffer(ids, dtype=">u8").reshape(-1, 2),
        np.frombuffer(split, dtype=np.uint8),
        np.frombuffer(characters, dtype=np.uint32),
    )


def _blocks(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    """Blocks of at most 2 BATCH_ROWS prompts and little more than 16 BATCH_CHARACTERS characters."""
    block: list[Prompt] = []
    characters = 0
    for prompt in prompts:
        block.append(prompt)
        characters += prompt.characters
        if len(block) >= 2 * BATCH_ROWS or characters >= 16 * BATCH_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block
