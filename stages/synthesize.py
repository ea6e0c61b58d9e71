"""The base answers the prompts itself: `python -m stages.synthesize`.

In: `data/prompts/{train,validation}.jsonl`, `models/base/`. Out: `data/synthetic/{train,validation}.jsonl`
and `metrics/synthesis.json`. Every answer is in the journal below `.specdec/synthesize/` as soon as it is
there, so that an interrupted run goes on where it was; when nothing is missing, no server is started.
In the metrics `data` counts all answers, of however many runs, and `last_run` has the speed of the last one.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdec.config import Environment, Synthesize, load_params
from specdec.errors import DataError, ModelError
from specdec.io import read_jsonl, write_json
from specdec.serving import resolve_engine, serve
from specdec.synthesis import (
    BaseTokens,
    Journal,
    Recipe,
    assemble,
    count_missing,
    journal_path,
    journal_settings,
    synthesize,
)
from stages import run, say

BASE = Path("models/base")
PROMPTS, OUT = Path("data/prompts"), Path("data/synthetic")
METRICS = Path("metrics/synthesis.json")
JOURNALS = Path(".specdec/synthesize")
SPLITS = ("train", "validation")


def main() -> None:
    """Asks for what the journal lacks, then writes both splits in the prompts' order."""
    settings, environment, identity = load_params().synthesize, Environment.read(), _identity()
    engine, samples = resolve_engine(settings, environment), settings.sampling.samples
    meaning = journal_settings(settings, engine, identity)
    with Journal.open(journal_path(JOURNALS, meaning), meaning) as journal:
        total, missing = count_missing(_prompts(), samples, journal)
        say(f"{total} rows, {total - missing} of them answered before")
        if missing:
            _ask(settings, environment, identity, journal)
        data = {split: assemble(journal, _rows(split), samples, OUT / f"{split}.jsonl").figures() for split in SPLITS}
        if empty := [split for split, part in data.items() if not part["rows"]]:
            raise DataError(f"no row of {empty[0]} has an answer: look at synthesize.sampling (cut_off, max_tokens)")
        # The last that asked for something: this one, or one that was stopped between its answers and its metrics.
        last = journal.runs[-1] if journal.runs else None
        write_json(METRICS, {"engine": engine, "data": data, "last_run": last, "runs": len(journal.runs)})
    if unanswered := sum(part["rows_missing"] for part in data.values()):
        say(f"{unanswered} rows have no answer: `dvc repro -f -s synthesize` asks for them again")


def _ask(settings: Synthesize, environment: Environment, identity: dict[str, str], journal: Journal) -> None:
    """One run against the servers."""
    with serve(BASE, settings, environment, JOURNALS / "server.log", say) as servers:
        recipe = Recipe(settings.sampling, settings.max_model_len, identity, BaseTokens.load(BASE))
        synthesize(
            _prompts,
            journal,
            servers,
            recipe,
            max_failed_share=settings.max_failed_share,
            concurrency=environment.concurrency,
            say=say,
        )


def _identity() -> dict[str, str]:
    """The hashes of the base's weights, tokenizer and chat template."""
    file = BASE / "specdec.json"
    try:
        identity: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError):
        raise ModelError(f"{file} is missing or unreadable: run the stage `fetch_base` first") from None
    return identity


def _prompts() -> Iterator[dict[str, Any]]:
    return itertools.chain.from_iterable(_rows(split) for split in SPLITS)


def _rows(split: str) -> Iterator[dict[str, Any]]:
    file = PROMPTS / f"{split}.jsonl"
    if not file.is_file():
        raise DataError(f"{file} is missing: run the stage `prepare_prompts` first")
    return read_jsonl(file)


if __name__ == "__main__":
    run(main)
