"""Settings and the files of a finished pipeline, small enough to make in every test."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from specdec.config import Params
from specdec.tracking.store import _prepare_database

DRAFTERS = ("one", "two")


REPOSITORY = Path(__file__).resolve().parents[2]


def settings(**changes: Any) -> dict[str, Any]:
    """The committed params.yaml with two Medusa drafters; `changes` replace whole sections."""
    committed = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    drafters = dict.fromkeys(DRAFTERS, committed["drafters"]["medusa"])
    return {**committed, "drafters": drafters, "register": register_settings(), **changes}


@functools.cache
def mlflow_tables() -> Path:
    """An MLflow database without content, made once a session (it takes up to ten seconds)."""
    database = Path(tempfile.mkdtemp(prefix="specdec-tests-")) / "mlflow.db"
    atexit.register(shutil.rmtree, database.parent, ignore_errors=True)
    _prepare_database(database)
    return database


def register_settings(**changes: Any) -> dict[str, Any]:
    """The section `register`: every gate is easy."""
    gates = {"min_acceptance_length": 1.0, "min_speedup": 1.0}
    return {"model_name": None, "bundle_base": False, **gates, **changes}


def params(**changes: Any) -> Params:
    return Params.model_validate(settings(**changes))


def write_settings(root: Path, **changes: Any) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(settings(**changes)))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_results(root: Path, drafters: tuple[str, ...] = DRAFTERS) -> None:
    """What the stages before `register` leave, with stand-ins for weights."""
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_settings(root)
    identity = {"weights": "a" * 64, "tokenizer": "b" * 64, "chat_template": "c" * 64}
    base = {"source": "embedded", "revision": None, "name": "tiny/base", "identity": identity}
    write_json(root / "models/base/specdec.json", base)
    write_json(root / "models/base/config.json", {})
    write_json(root / "data/prompts/test.jsonl", {"id": "1"})
    write_json(root / "data/raw/source.json", {"url": "https://me:hunter2@host/x", "revision": "d" * 40})
    for name in drafters:
        write_drafter(root, name, weights=name)
        write_figures(root, name)


def write_drafter(root: Path, name: str, weights: str) -> None:
    folder = root / "models/drafters" / name
    write_json(folder / "config.json", {"medusa_num_heads": 2})
    (folder / "model.safetensors").write_text(weights)
    write_json(folder / "specdec.json", {"method": "medusa", "data": {"train": "e" * 64}})
    write_json(root / "metrics/train" / f"{name}.json", {"mlflow_run": "0" * 32})


def write_figures(root: Path, name: str, length: float = 1.8, speedup: float = 1.3, lossless: bool = True) -> None:
    """An evaluation whose intervals reach 0.1 to either side."""
    metrics = {
        "acceptance_length": {"value": length, "low": length - 0.1, "high": length + 0.1},
        "speedup": {"value": speedup, "low": speedup - 0.1, "high": speedup + 0.1},
        "position_rates": [0.5, 0.3],
        "lossless": lossless,
        "certificate": True,
    }
    write_json(root / "metrics/evaluate" / f"{name}.json", metrics)
    report = root / "reports" / name / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<p>report</p>")
