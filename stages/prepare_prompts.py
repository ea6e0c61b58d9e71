"""Conversations to prompts: checked, de-duplicated, filtered by length, split by a hash.

python -m stages.prepare_prompts  ->  data/prompts/{train,validation,test}.jsonl, metrics/prompts.json
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from specdec.config import load_params
from specdec.data.conversations import Conversation, Message, RowCount, read_conversations
from specdec.data.prompts import (
    SPLITS,
    Prompt,
    PromptCount,
    prompt_ids,
    select,
    split_of,
    unique_short_prompts,
)
from specdec.errors import DataError
from specdec.io import write_json, write_jsonl
from specdec.targets import load_tokenizer
from stages import run, say

RAW = Path("data/raw/train.jsonl")
OUT = Path("data/prompts")


def main() -> None:
    settings = load_params().prepare_prompts
    if not RAW.is_file():
        raise DataError(f"there is no {RAW}: run the stage `clone_data` first")
    tokenizer = load_tokenizer(Path("models/base"))
    rows, count = RowCount(), PromptCount()

    def length(messages: list[Message]) -> int:
        return len(prompt_ids(tokenizer, messages))

    splits: dict[str, list[Prompt]] = {name: [] for name in SPLITS}
    conversations = _told(read_conversations(RAW, rows))
    for prompt in unique_short_prompts(conversations, length, settings.max_turns, settings.max_prompt_tokens, count):
        splits[split_of(prompt, settings.validation_share, settings.test_share)].append(prompt)
    limits = {"train": settings.max_train, "validation": settings.max_validation, "test": settings.max_test}
    for name in SPLITS:
        splits[name] = select(splits[name], limits[name], count)
        if not splits[name]:
            raise DataError(f"no prompt is left for the {name} split: {rows.rows} rows, {dict(count.dropped)}")
        write_jsonl(OUT / f"{name}.jsonl", (prompt.as_row() for prompt in splits[name]))
    kept = {name: len(found) for name, found in splits.items()}
    say(f"kept {kept}, dropped {dict(count.dropped + rows.bad)}")
    write_json(Path("metrics/prompts.json"), _metrics(rows, count, splits))


def _told(conversations: Iterator[Conversation]) -> Iterator[Conversation]:
    for number, conversation in enumerate(conversations):
        if number and number % 5000 == 0:
            say(f"{number:,} conversations read")
        yield conversation


def _metrics(rows: RowCount, count: PromptCount, splits: dict[str, list[Prompt]]) -> dict[str, object]:
    """Accounts for every input row: kept + dropped + bad = rows."""
    percentiles = np.percentile(count.lengths, [50, 90, 99, 100])
    return {
        "rows": rows.rows,
        "kept": {name: len(found) for name, found in splits.items()},
        "dropped": dict(count.dropped),
        "bad_rows": dict(rows.bad),
        "categories": {name: dict(Counter(p.category for p in found)) for name, found in splits.items()},
        "prompt_tokens": dict(zip(("p50", "p90", "p99", "max"), percentiles.tolist(), strict=True)),
    }


if __name__ == "__main__":
    run(main)
