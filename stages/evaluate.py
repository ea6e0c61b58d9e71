"""One drafter on the held-out prompts and the evaluation files: acceptance, speedup, losslessness, the report.

python -m stages.evaluate D    ->  reports/D/, metrics/evaluate/D.json
"""

import csv
import json
from pathlib import Path
from typing import Any

from specdec.config import Evaluate, Params, load_params
from specdec.data.evaluation_files import first_of_each_category, read_evaluation_file
from specdec.data.prompts import prompt_ids
from specdec.drafters import Drafter, load_drafter
from specdec.drafters.trees import parse_tree
from specdec.evaluation import Bootstrap, Certificate, Plan, certify, evaluate
from specdec.io import read_jsonl, replacing_dir, sha256_file, write_json
from specdec.report import Report, environment_facts, examples, write_evaluation
from specdec.targets import Target
from specdec.tracking import record_finished
from stages import drafter_name, run, say, training_run

TEST, VALIDATION = Path("data/prompts/test.jsonl"), Path("data/prompts/validation.jsonl")


def main() -> None:
    params = load_params()
    name = drafter_name(params)
    settings = params.evaluate
    files = _files(params)
    rows = list(read_jsonl(TEST))
    certificate = _certificate(settings, name, rows)
    target, drafter = _load(name, settings.dtype)
    evaluation = evaluate(target, drafter, rows, _plan(settings), say, list(read_jsonl(VALIDATION)), files)
    figures = evaluation.main_figures(settings.confidence) | {
        "certificate": certificate.passed,
        "test_prompts": sha256_file(TEST),
        "dtype": settings.dtype,
    }
    report = Report(
        name,
        figures,
        _curves(name),
        _facts(target, figures, params),
        examples(evaluation.prompts, rows, target.tokenizer, 4),
        evaluation.all_figures(),
        certificate.as_text(),
    )
    with replacing_dir(Path("reports") / name) as folder:
        write_evaluation(report, evaluation, folder)
        write_json(folder / "certificate.json", certificate.as_dict())
        configs = evaluation.speculative_configs(drafter.method, f"models/drafters/{name}")
        write_json(folder / "speculative_config.json", configs)
    ways = {way: _headline(found) for way, found in evaluation.figures.items()}
    logged = {**_flat(figures), "ways": ways, "files": figures["files"]}
    record_finished(name, params, training_run(name), logged, Path("reports") / name, "report")
    write_json(Path("metrics/evaluate") / f"{name}.json", figures)
    length, speedup = figures["acceptance_length"], figures["speedup"]
    say(
        f"acceptance length {length['value']:.3f}, speedup {speedup['value']:.2f}, "
        f"{'lossless' if figures['lossless'] else 'NOT LOSSLESS'} on {figures['prompts']} prompts, "
        f"certificate {'passed' if certificate.passed else 'NOT PASSED'}"
    )


def _files(params: Params) -> dict[str, list[dict[str, Any]]]:
    """The prompts to measure of each evaluation file, by its path."""
    read = {f.path: read_evaluation_file(Path(f.path), f.sha256) for f in params.prepare_prompts.evaluation_files}
    return {path: first_of_each_category(rows, params.evaluate.file_prompts) for path, rows in read.items()}


def _certificate(settings: Evaluate, name: str, rows: list[dict[str, Any]]) -> Certificate:
    wanted = settings.certificate
    target, drafter = _load(name, "float32")
    prompts = [prompt_ids(target.tokenizer, row["messages"]) for row in rows[: wanted.prompts]]
    return certify(
        target,
        drafter,
        prompts,
        deployment=_load(name, wanted.deployment) if wanted.deployment else None,
        max_new_tokens=wanted.max_new_tokens,
        tokens=wanted.sampled_tokens,
        seed=settings.seed,
        say=say,
    )


def _load(name: str, dtype: str) -> tuple[Target, Drafter]:
    target = Target.from_pretrained("models/base", dtype=dtype)
    return target, load_drafter(Path("models/drafters") / name, target)


def _plan(settings: Evaluate) -> Plan:
    return Plan(
        settings.max_new_tokens,
        settings.repeats,
        Bootstrap(settings.bootstrap_samples, settings.confidence, settings.seed),
        tuple(settings.temperatures),
        tuple(settings.draft_lengths),
        tuple(map(parse_tree, settings.trees)),
        tuple(settings.static_nodes),
        settings.ways_prompts,
    )


def _curves(name: str) -> dict[str, list[tuple[int, float]]]:
    with (Path("metrics/train") / f"{name}.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    metrics = [m for m in (table[0] if table else {}) if m != "step"]
    return {m: [(int(row["step"]), float(row[m])) for row in table if row[m]] for m in metrics}


def _facts(target: Target, figures: dict[str, Any], params: Params) -> dict[str, str]:
    base = json.loads(Path("models/base/specdec.json").read_text())
    source = json.loads(Path("data/raw/source.json").read_text())
    return {
        "base": f"{base['name']} ({base['source']}, revision {base['revision']})",
        "base weights": base["identity"]["weights"],
        "tokenizer": base["identity"]["tokenizer"],
        "dataset": f"{source['url']} at {source['commit'] or source['sha256']}",
        "test prompts": figures["test_prompts"],
        **{file.path: file.sha256 for file in params.prepare_prompts.evaluation_files},
        **environment_facts(target),
    }


def _headline(figures: dict[str, Any]) -> dict[str, float]:
    return {key: figures[key]["value"] for key in ("acceptance_length", "speedup")}


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """{"acceptance_length": {"value": v, ...}} -> {"acceptance_length": v, "acceptance_length/low": ...}."""
    flat: dict[str, float] = {}
    for key, content in figures.items():
        if isinstance(content, bool | int | float):
            flat[f"test/{key}"] = float(content)
        elif isinstance(content, list):
            flat |= {f"test/{key}/position_{i + 1}": value for i, value in enumerate(content)}
        elif isinstance(content, dict) and key not in ("categories", "files"):
            for part, value in content.items():
                if value is not None:
                    flat[f"test/{key}" if part == "value" else f"test/{key}/{part}"] = value
    return flat


if __name__ == "__main__":
    run(main)
