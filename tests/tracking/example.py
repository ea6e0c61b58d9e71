"""Settings and the files of a finished pipeline, small enough to make in every test."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from specdec.config import Params
from specdec.tracking.store import _prepare_database

DRAFTERS = ("one", "two")
IDENTITY = {"weights": "a" * 64, "tokenizer": "b" * 64, "chat_template": "c" * 64}


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
    gates = {"min_acceptance_length": 1.0, "min_speedup": 1.0, "max_engine_difference": 0.03, "require_engine": False}
    gates |= {"served_requests": None, "min_served_speedup": 1.0}
    return {"model_name": None, "bundle_base": False, **gates, "promote": "automatic", **changes}


def params(**changes: Any) -> Params:
    return Params.model_validate(settings(**changes))


def write_settings(root: Path, **changes: Any) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(settings(**changes)))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_results(root: Path, drafters: tuple[str, ...] = DRAFTERS) -> None:
    """What the stages before `register` leave, the smallest heads that there can be."""
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_settings(root)
    base = {"source": "embedded", "revision": None, "name": "tiny/base", "identity": IDENTITY}
    write_json(root / "models/base/specdec.json", base)
    sizes = {"hidden_size": 4, "vocab_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    write_json(root / "models/base/config.json", {"model_type": "llama", **sizes})
    write_json(root / "data/prompts/test.jsonl", {"id": "1"})
    write_json(root / "data/raw/source.json", {"url": "https://me:hunter2@host/x", "revision": "d" * 40})
    for name in drafters:
        write_drafter(root, name, weights=name)
        write_figures(root, name)


def write_drafter(root: Path, name: str, weights: str) -> None:
    """weights: other ones for another text."""
    folder = root / "models/drafters" / name
    sizes = {"hidden_size": 4, "vocab_size": 8, "num_heads": 1, "num_hidden_layers": 1}
    flags = {"medusa_fc_bias": False, "original_lm_head": False}
    write_json(folder / "config.json", {"model_type": "medusa", "architectures": ["MedusaModel"], **sizes, **flags})
    own = torch.tensor(list(weights.encode().ljust(16)[:16]), dtype=torch.float32).view(4, 4)
    save_file({"blocks.0.layers.0.weight": own, "lm_heads.0.weight": torch.ones(8, 4)}, folder / "model.safetensors")
    record = {"method": "medusa", "draft_tokens": 1, "base": IDENTITY, "data": {"train": "e" * 64}}
    write_json(folder / "specdec.json", record)
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
    write_json(root / "metrics/engine" / f"{name}.json", {"skipped": "there is none"})
    report = root / "reports" / name / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<p>report</p>")
