"""One drafter on the held-out prompts: acceptance, speedup, losslessness, the report.

python -m stages.evaluate D    ->  reports/D/, metrics/evaluate/D.json
"""

import csv
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from specdec.config import load_params
from specdec.drafters import load_drafter
from specdec.evaluation import Bootstrap, Measurement, losslessness, measure, summarize
from specdec.io import read_jsonl, replacing_dir, sha256_file, write_json, write_jsonl
from specdec.report import Report, examples, write_report
from specdec.targets import Target
from specdec.tracking import drafter_run
from stages import drafter_name, run, say

TEST = Path("data/prompts/test.jsonl")


def main() -> None:
    params = load_params()
    name = drafter_name(params)
    settings = params.evaluate
    target = Target.from_pretrained("models/base", dtype=settings.dtype)
    drafter = load_drafter(Path("models/drafters") / name, target)
    rows = list(read_jsonl(TEST))
    measured = measure(target, drafter, rows, settings.max_new_tokens, settings.repeats, say)
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, settings.seed)
    figures = summarize(measured, bootstrap) | {"test_prompts": sha256_file(TEST), "dtype": settings.dtype}
    report = Report(
        name,
        figures,
        _curves(name),
        _facts(target, figures),
        examples(measured.prompts, rows, target.tokenizer, 4),
    )
    _write(name, report, measured, settings.dtype)
    with drafter_run(name, params, _run_id(name)) as tracked:
        tracked.log_metrics(_flat(figures))
        tracked.log_artifacts(Path("reports") / name, "report")
    write_json(Path("metrics/evaluate") / f"{name}.json", figures)
    length, speedup = figures["acceptance_length"], figures["speedup"]
    say(
        f"acceptance length {length['value']:.3f}, speedup {speedup['value']:.2f}, "
        f"{'lossless' if figures['lossless'] else 'NOT LOSSLESS'} on {figures['prompts']} prompts"
    )


def _write(name: str, report: Report, measured: Measurement, dtype: str) -> None:
    with replacing_dir(Path("reports") / name) as folder:
        write_report(report, folder)
        write_json(folder / "figures.json", report.figures)
        write_json(folder / "losslessness.json", losslessness(measured, dtype))
        write_jsonl(folder / "prompts.jsonl", (asdict(p) for p in measured.prompts))


def _curves(name: str) -> dict[str, list[tuple[int, float]]]:
    with (Path("metrics/train") / f"{name}.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    metrics = [m for m in (table[0] if table else {}) if m != "step"]
    return {m: [(int(row["step"]), float(row[m])) for row in table if row[m]] for m in metrics}


def _facts(target: Target, figures: dict[str, Any]) -> dict[str, str]:
    base = json.loads(Path("models/base/specdec.json").read_text())
    source = json.loads(Path("data/raw/source.json").read_text())
    return {
        "base": f"{base['name']} ({base['source']}, revision {base['revision']})",
        "base weights": base["identity"]["weights"],
        "tokenizer": base["identity"]["tokenizer"],
        "dataset": f"{source['url']} at {source['commit'] or source['sha256']}",
        "test prompts": figures["test_prompts"],
        "data type": figures["dtype"],
        "device": torch.cuda.get_device_name()
        if target.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def _run_id(name: str) -> str | None:
    """The MLflow run that trained this drafter (not an input: it changes no result)."""
    file = Path("metrics/train") / f"{name}.json"
    return json.loads(file.read_text()).get("mlflow_run") if file.exists() else None


def _flat(figures: dict[str, Any]) -> dict[str, float]:
    """{"acceptance_length": {"value": v, ...}} -> {"acceptance_length": v, "acceptance_length/low": ...}."""
    flat: dict[str, float] = {}
    for key, content in figures.items():
        if isinstance(content, bool | int | float):
            flat[f"test/{key}"] = float(content)
        elif isinstance(content, list):
            flat |= {f"test/{key}/position_{i + 1}": value for i, value in enumerate(content)}
        elif isinstance(content, dict) and key != "categories":
            for part, value in content.items():
                if value is not None:
                    flat[f"test/{key}" if part == "value" else f"test/{key}/{part}"] = value
    return flat


if __name__ == "__main__":
    run(main)
