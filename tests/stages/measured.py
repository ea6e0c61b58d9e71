"""A tiny project up to its trained drafters, with a real MLflow: what `evaluate` and `compare` begin with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from specdec.drafters import new_drafter
from specdec.io import write_json
from specdec.targets import Target
from tests.settings import medusa_settings
from tests.tracking.example import mlflow_tables, settings

EVALUATE: dict[str, Any] = {
    "max_new_tokens": 8,
    "dtype": "float32",
    "temperatures": [0.0],
    "draft_lengths": [],
    "trees": [],
    "static_nodes": [],
    "ways_prompts": None,
    "file_prompts": 2,
    "certificate": {"prompts": 1, "max_new_tokens": 3, "sampled_tokens": 1, "deployment": None},
    "repeats": 1,
    "bootstrap_samples": 100,
    "confidence": 0.9,
    "seed": 0,
}
DRAFTERS = ("one", "two")


def make_project(root: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two untrained Medusa drafters on 8 prompts; the working directory from here on."""
    root.mkdir()
    work_in(root, monkeypatch)
    shutil.copy(mlflow_tables(), root / "mlflow.db")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text(yaml.safe_dump(settings(evaluate=EVALUATE)))
    write_base_with_record(root, base)
    for split in ("test", "validation"):
        write_jsonl(root / f"data/prompts/{split}.jsonl", [prompt(split, i) for i in range(8)])
    write_json(root / "data/raw/source.json", {"url": "here", "commit": None, "sha256": "0" * 64})
    for seed, name in enumerate(DRAFTERS):
        write_drafter(root / "models/drafters" / name, root / "models/base", seed)
        (root / "metrics/train").mkdir(parents=True, exist_ok=True)
        (root / f"metrics/train/{name}.csv").write_text("step,loss,validation/acceptance_length\n1,2.0,1.1\n")
    return root


def work_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SPECDEC_EXECUTION", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)


def write_base_with_record(root: Path, base: Path) -> None:
    """As `fetch_base` leaves it."""
    shutil.rmtree(root / "models/base", ignore_errors=True)
    shutil.copytree(base, root / "models/base")
    identity = Target.from_pretrained(base, device="cpu").identity.as_dict()
    record = {"name": "tiny/base", "source": "embedded", "revision": None, "identity": identity}
    write_json(root / "models/base/specdec.json", record)


def write_drafter(folder: Path, base: Path, seed: int) -> None:
    """Heads that say what their seed says."""
    drafter = new_drafter(Target.from_pretrained(base, device="cpu"), medusa_settings())
    torch.manual_seed(seed)
    for weight in drafter.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    drafter.save_pretrained(folder)


def prompt(split: str, number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    return {"id": f"{split}{number}", "category": f"kind{number % 2}", "messages": messages}


def write_jsonl(file: Path, rows: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
