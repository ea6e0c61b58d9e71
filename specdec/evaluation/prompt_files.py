"""A drafter on further files of prompts, beside the held-out ones: Spec-Bench, GSM8K, ..."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specdec.data.prompts import template_refusal
from specdec.drafters import Drafter
from specdec.errors import DataError
from specdec.evaluation.measure import EvaluationPrompt, Measurements, encode
from specdec.evaluation.plan import LOOKUP, Plan, first_ways
from specdec.evaluation.ways import WayFigures, measure_ways
from specdec.targets import Target


@dataclass(frozen=True)
class FileEvaluation:
    """One file. measured, figures: of the main way, no drafter and prompt lookup. skipped: by category, prompts that
    the chat template refuses, or that do not fit the base."""

    main: str
    measured: Measurements
    figures: WayFigures
    skipped: dict[str, int]

    @property
    def lossless(self) -> bool:
        return all(found["lossless"] for found in self.figures.values())

    def brief(self) -> dict[str, Any]:
        """For `metrics/evaluate/D.json`: the main way and prompt lookup, overall and by category."""
        main, lookup = self.figures[self.main], self.figures[LOOKUP]
        others = lookup["categories"]
        return {
            "lossless": self.lossless,
            "skipped_prompts": self.skipped,
            **_beside(main, lookup),
            "categories": {name: _beside(group, others[name]) for name, group in main["categories"].items()},
        }


def evaluate_files(
    target: Target,
    drafter: Drafter,
    files: dict[str, list[dict[str, Any]]],
    plan: Plan,
    notes: list[str],
    say: Callable[[str], None],
) -> dict[str, FileEvaluation]:
    """By the file's name. files: their rows, as `encode` takes them. A file of which no prompt fits the base is left
    out, and `notes` say so."""
    found = {}
    for name, rows in files.items():
        say(f"{name}: {len(rows)} prompts")
        taken = [row for row in rows if template_refusal(target.tokenizer, row["messages"]) is None]
        try:
            prompts, _ = encode(target, taken, plan.max_new_tokens, say)
        except DataError:
            notes.append(f"{name} was not measured: none of its {len(rows)} prompts fits {target.name}")
            continue
        ways = first_ways(drafter)
        measured, figures = measure_ways(target, ways, prompts, plan, say)
        found[name] = FileEvaluation(ways[1].name, measured, figures, dict(_skipped(rows, prompts)))
    return found


def _skipped(rows: list[dict[str, Any]], prompts: list[EvaluationPrompt]) -> Counter[str]:
    return Counter(row["category"] for row in rows) - Counter(prompt.category for prompt in prompts)


def _beside(ours: dict[str, Any], lookup: dict[str, Any]) -> dict[str, Any]:
    figures = ("acceptance_length", "speedup")
    return {
        "prompts": ours["prompts"],
        "tokens": ours["tokens"],
        **{key: ours[key] for key in figures},
        "prompt_lookup": {key: lookup[key] for key in figures},
    }
