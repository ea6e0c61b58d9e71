"""`specdec evaluate`: what a drafter is worth on a file of prompts, without the pipeline."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.data.evaluation_files import of_categories_in_turn
from specdec.data.prompt_files import read_prompt_file
from specdec.drafters.trees import parse_tree
from specdec.errors import ConfigError
from specdec.evaluation import Bootstrap, Evaluation, Plan, evaluate
from specdec.export import load_any
from specdec.io import replacing_dir, sha256_file
from specdec.report import Report, environment_facts, examples, write_evaluation
from specdec.targets import Target

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """What the command line says."""

    model: Path
    drafter: Path
    prompts: Path
    calibration: Path | None
    max_prompts: int | None
    dtype: str
    output: Path | None
    plan: Plan


def plan_of(
    max_new_tokens: int,
    repeats: int,
    seed: int,
    temperatures: list[float],
    draft_lengths: list[int],
    trees: list[str],
    static_nodes: list[int],
) -> Plan:
    """Raises ConfigError for a tree that is none."""
    return Plan(
        max_new_tokens,
        repeats,
        Bootstrap(2000, 0.95, seed),
        tuple(temperatures),
        tuple(draft_lengths),
        tuple(map(parse_tree, trees)),
        tuple(static_nodes),
    )


def evaluate_drafter(request: Request, say: Callable[[str], None]) -> Evaluation:
    """Measures, and writes the report where it is asked for. Raises ConfigError when `output` is there already."""
    if request.output and request.output.exists():
        raise ConfigError(f"--output {request.output} is there already: remove it, or name another folder")
    if request.dtype not in DTYPES:
        raise ConfigError(f"--dtype is {request.dtype!r}: choose one of {', '.join(DTYPES)}")
    if request.output:
        check_writable(request.output)
    rows = of_categories_in_turn(read_prompt_file(request.prompts), request.max_prompts)
    calibration = read_prompt_file(request.calibration) if request.calibration else None
    target = Target.from_pretrained(request.model, dtype=request.dtype)
    drafter, layout = load_any(request.drafter, target)
    say(f"{drafter.method} drafter ({layout}), {len(rows)} prompts")
    evaluation = evaluate(target, drafter, rows, request.plan, say, calibration)
    if request.output:
        facts = {
            "base": str(request.model),
            "drafter": f"{request.drafter} ({layout})",
            "base weights": target.identity.weights,
            "prompts": f"{request.prompts} ({sha256_file(request.prompts)})",
            **environment_facts(target),
        }
        figures = evaluation.main_figures(request.plan.bootstrap.confidence)
        shown = examples(evaluation.prompts, rows, target.tokenizer, 4)
        ways = evaluation.all_figures()
        report = Report(request.drafter.name, figures, {}, facts, shown, ways, held_out=False)
        with replacing_dir(request.output) as folder:
            write_evaluation(report, evaluation, folder)
    return evaluation


def check_writable(output: Path) -> None:
    """Before anything is measured. Raises ConfigError."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made there ({error.strerror}): name another place") from None


def table(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """The header, and one row for each way."""
    from specdec.report.page import interval, verdict

    rows: list[tuple[str, ...]] = [
        ("way", "acceptance length", f"against {evaluation.main}", "speedup", "tokens/s", "draft share")
    ]
    for name, figures in evaluation.figures.items():
        rows.append(_line(name, figures, interval, verdict))
    return rows


def _line(name: str, figures: dict[str, Any], interval: Any, verdict: Any) -> tuple[str, ...]:
    return (
        name,
        interval(figures["acceptance_length"]),
        verdict(figures["to_main"]) if "to_main" in figures else "",
        interval(figures["speedup"]),
        f"{figures['tokens_per_second']['drafter']:,.0f}",
        f"{figures['draft_share']:.0%}",
    )
