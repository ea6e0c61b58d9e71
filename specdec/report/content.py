"""What a report says, before it is drawn."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it brings torch, which no page needs
    from specdec.evaluation import PromptMeasurement
    from specdec.targets import Target

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Example:
    """A prompt and its answer as pieces of text, each with whether the drafter had proposed it."""

    category: str
    question: str
    pieces: list[tuple[str, bool]]
    acceptance_length: float


@dataclass(frozen=True)
class Report:
    """drafter: its name. figures: `metrics/evaluate/D.json`. curves: metric -> (step, value) while training.

    facts: label -> value, what was measured on what. examples: answers with the drafter's tokens marked. ways:
    `ways.json`, each way to decode with its figures. certificate: its text, where one was made.
    held_out: whether the prompts were kept from the training; of a file of the user's nobody knows.
    """

    drafter: str
    figures: dict[str, Any]
    curves: dict[str, Curve]
    facts: dict[str, str]
    examples: list[Example]
    ways: dict[str, Any]
    certificate: str | None = None
    held_out: bool = True


def environment_facts(target: Target) -> dict[str, str]:
    """Data type, device and versions that figures were measured with."""
    import torch  # no page of prompts needs it

    gpu = target.device.type == "cuda"
    return {
        "data type": str(target.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def examples(
    prompts: list[PromptMeasurement], rows: list[dict[str, Any]], tokenizer: Any, count: int
) -> list[Example]:
    """The prompt with the median acceptance of each of the largest categories, `count` at most."""
    questions = {row["id"]: row["messages"][-1]["content"] for row in rows}
    groups: dict[str, list[PromptMeasurement]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    return [_example(_median(group), questions, tokenizer) for _, group in largest]


def _median(group: list[PromptMeasurement]) -> PromptMeasurement:
    ordered = sorted(group, key=lambda p: (p.accepted / max(1, p.steps), p.id))
    return ordered[len(ordered) // 2]


def _example(prompt: PromptMeasurement, questions: dict[str, str], tokenizer: Any) -> Example:
    # Runs of equal origin are decoded together, so that characters of several tokens stay whole.
    runs: list[tuple[list[int], bool]] = []
    first = slice(prompt.turn_tokens[0])  # the question's own answer; further turns have other questions
    for token, drafted in zip(prompt.token_ids[first], prompt.draft_accepted[first], strict=True):
        if runs and runs[-1][1] == drafted:
            runs[-1][0].append(token)
        else:
            runs.append(([token], drafted))
    pieces = [(tokenizer.decode(ids, skip_special_tokens=True), drafted) for ids, drafted in runs]
    return Example(prompt.category, questions[prompt.id], pieces, 1 + prompt.accepted / max(1, prompt.steps))
