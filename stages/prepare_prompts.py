"""Conversations to prompts: checked, de-duplicated, filtered by length, split by a hash, decontaminated.

python -m stages.prepare_prompts  ->  data/prompts/{train,validation,test}.jsonl, data/prompts/report.html,
                                      metrics/prompts.json
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from specdec.config import PreparePrompts, PromptFile, load_params
from specdec.data.conversations import Conversation, RowCount, read_conversations
from specdec.data.evaluation_files import read_evaluation_file, turns_of
from specdec.data.further_prompts import read_further_prompts
from specdec.data.lengths import length_table, percentiles, token_lengths
from specdec.data.prompt_table import PromptTable, write_table
from specdec.data.prompts import SPLITS, make_prompt
from specdec.data.selection import DUPLICATE, Fates, Rules, select
from specdec.data.telling import telling
from specdec.errors import DataError
from specdec.io import write_json, write_jsonl
from specdec.report import write_prompts_report
from specdec.targets import load_tokenizer
from stages import run, say

RAW = Path("data/raw/train.jsonl")
OUT = Path("data/prompts")
WORK = Path(".specdec/prompts")


def main() -> None:
    settings = load_params().prepare_prompts
    if not RAW.is_file():
        raise DataError(f"there is no {RAW}: run the stage `clone_data` first")
    evaluation = {file.path: _turns(file) for file in settings.evaluation_files}
    tokenizer = load_tokenizer(Path("models/base"))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing forks here, and it is most of the work
    rows = RowCount()
    with _work_folder() as work:
        conversations = telling(say, "conversations read", _conversations(settings, rows))
        prompts = (make_prompt(c, settings.max_turns) for c in conversations)
        table = write_table(prompts, settings.validation_share, settings.test_share, work / "prompts.arrow")
        fates = Fates(table.split)
        fates.drop(table.duplicates(), DUPLICATE)
        lengths = token_lengths(table, np.flatnonzero(fates.kept), tokenizer, say)
        select(table, fates, lengths, evaluation, _rules(settings), say)
        categories = _write(table, fates, rows)
    metrics = _accounts(rows, fates, categories) | {
        "evaluation_files": {path: len(prompts) for path, prompts in evaluation.items()},
        "prompt_tokens": {name: percentiles(lengths[fates.standing(name)]) for name in SPLITS},
        "max_prompt_tokens": settings.max_prompt_tokens,
        "lengths": length_table(lengths, table.split, fates.kept, settings.max_prompt_tokens),
    }
    write_prompts_report(metrics, OUT / "report.html")
    write_json(Path("metrics/prompts.json"), metrics)
    say(f"kept {metrics['kept']} of {rows.rows:,} rows; the rest, and why: {OUT / 'report.html'}")


def _conversations(settings: PreparePrompts, rows: RowCount) -> Iterator[Conversation]:
    """Those of the dataset, then each further prompt, whose category names its file."""
    yield from read_conversations(RAW, rows)
    for file in settings.further_prompts:
        for conversation in read_further_prompts(Path(file.path), file.sha256):
            rows.rows += 1
            yield conversation


def _turns(file: PromptFile) -> list[list[str]]:
    return [turns_of(row) for row in read_evaluation_file(Path(file.path), file.sha256)]


def _rules(settings: PreparePrompts) -> Rules:
    limits = {"train": settings.max_train, "validation": settings.max_validation, "test": settings.max_test}
    return Rules(settings.max_prompt_tokens, settings.near_duplicate, limits)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Empty, also when a killed run left something, and gone afterwards."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        yield WORK
    finally:
        shutil.rmtree(WORK)


def _write(table: PromptTable, fates: Fates, rows: RowCount) -> dict[str, Counter[str]]:
    """Writes the kept prompts of each split, by id; category -> number of them."""
    for name in SPLITS:
        if not len(fates.standing(name)):
            dropped = {split: fates.dropped(split) for split in SPLITS}
            raise DataError(f"no prompt is left for the {name} split: {rows.rows} rows, dropped {dropped}")
    categories: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    for name in SPLITS:
        kept = table.by_id(fates.standing(name))
        texts = (text for _, batch in table.batches(kept) for text in batch)
        write_jsonl(OUT / f"{name}.jsonl", _counted(texts, categories[name]))
    return categories


def _counted(texts: Iterator[dict[str, Any]], categories: Counter[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        categories[text["category"]] += 1
        yield text


def _accounts(rows: RowCount, fates: Fates, categories: dict[str, Counter[str]]) -> dict[str, Any]:
    """What became of every input row: kept + dropped + bad = rows."""
    kept = {name: found.total() for name, found in categories.items()}
    dropped = {name: fates.dropped(name) for name in SPLITS}
    total = sum(kept.values()) + sum(sum(reasons.values()) for reasons in dropped.values()) + rows.bad.total()
    assert total == rows.rows, f"{rows.rows} rows were read, and {total} are accounted for"
    return {
        "rows": rows.rows,
        "bad_rows": dict(rows.bad),
        "dropped": dropped,
        "kept": kept,
        "categories": {name: dict(found) for name, found in categories.items()},
    }


if __name__ == "__main__":
    run(main)
