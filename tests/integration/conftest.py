"""The whole repository in a folder of its own, on a tiny base and a small dataset."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.settings import medusa, sampling

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-of-somebody-else-4417"  # in the environment of every run; nothing may write it down
CODE = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "flows", "stages", "specdec", "profiles")

SMALL: dict[str, Any] = {
    "prepare_prompts": {
        "validation_share": 0.2,
        "test_share": 0.2,
        "max_train": 40,
        "max_validation": 8,
        "max_test": 6,
        "max_turns": 2,
        "max_prompt_tokens": 100,
        "near_duplicate": 0.8,
        "further_prompts": [],
    },
    "synthesize": {
        "engine": "transformers",
        "engine_args": [],
        "dtype": "float32",
        "max_model_len": 128,
        "sampling": sampling(max_tokens=12).model_dump(),
        "max_failed_share": 0.5,  # a random base may end at once
    },
    "evaluate": {
        "max_new_tokens": 12,
        "dtype": "float32",
        "temperatures": [0.0, 1.0],
        "draft_lengths": [1],
        "trees": ["2,2,4"],
        "static_nodes": [4],
        "ways_prompts": 3,
        "file_prompts": 2,
        "certificate": {"prompts": 3, "max_new_tokens": 16, "sampled_tokens": 240, "deployment": "bfloat16"},
        "repeats": 1,
        "bootstrap_samples": 100,
        "confidence": 0.9,
        "seed": 0,
    },
    "benchmark": {
        "engine": "none",
        "engine_args": [],
        "dtype": "float32",
        "max_model_len": 256,
        "prompts": 6,
        "max_new_tokens": 12,
        "concurrencies": [1, 2],
        "draft_lengths": [],
        "repeats": 1,
    },
    # Random weights promise no speedup: what is tested is the path.
    "register": {
        "model_name": None,
        "bundle_base": True,
        "min_acceptance_length": 1.0,
        "min_speedup": 0.0,
        "max_engine_difference": 0.03,
        "served_requests": None,
        "min_served_speedup": 1.0,
        "require_engine": False,
        "promote": "automatic",
    },
}


@dataclass
class Project:
    """A checkout at `root`; commands run as a user's would."""

    root: Path
    environment: dict[str, str]

    def params(self, **sections: Any) -> None:
        content = yaml.safe_load((self.root / "params.yaml").read_text()) | sections
        (self.root / "params.yaml").write_text(yaml.safe_dump(content))

    def run(self, *command: str, timeout: int = 900) -> tuple[int, str]:
        """(exit code, output) of a Python module with its arguments."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return done.returncode, done.stdout

    def git(self, *command: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command], cwd=self.root, check=True, capture_output=True)


def write_dataset(repository: Path, rows: int = 150) -> None:
    """A git repository of short conversations, every third with a system prompt, every fourth of two turns."""
    repository.mkdir(parents=True)
    lines = []
    for i in range(rows):
        turns = [f"What is {i}?", f"It is {i}."] + ([f"And {i + 1}?", f"That is {i + 1}."] if i % 4 == 0 else [])
        talk = [{"from": ("User", "Assistant")[j % 2], "value": t, "label": None} for j, t in enumerate(turns)]
        system = "Be brief." if i % 3 == 0 else ""
        lines.append(json.dumps({"system": system, "dataset": f"kind{i % 2}", "conversations": talk}))
    (repository / "train.jsonl").write_text("\n".join(lines) + "\n")
    project = Project(repository, dict(os.environ))
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-qm", "data")


def make_project(root: Path, base: Path, dataset: Path) -> Project:
    root.mkdir()
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc")
    own = ("PREFECT_", "MLFLOW_", "SPECDEC_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(root), "SPECDEC_API_KEY": KEY}
    project = Project(root, environment)
    bench = "".join(json.dumps({"turns": [f"Add {i} to {i}."], "category": f"c{i % 2}"}) + "\n" for i in range(6))
    (root / "bench.jsonl").write_text(bench)
    listed = [{"path": "bench.jsonl", "sha256": hashlib.sha256(bench.encode()).hexdigest()}]
    project.params(
        clone_data={"url": str(dataset), "revision": "main", "file": "train.jsonl", "max_bad_share": 0.0},
        fetch_base={"source": str(base), "revision": None},
        drafters={"medusa": medusa(max_length=128), "wide": medusa(max_length=128, seed=1)},
        **SMALL | {"prepare_prompts": SMALL["prepare_prompts"] | {"evaluation_files": listed}},
    )
    return project


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "data"
    write_dataset(folder)
    return folder
