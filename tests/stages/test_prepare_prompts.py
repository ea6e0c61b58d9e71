"""The stage on a tiny project: what becomes of every row, and what a user reads when nothing is left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.io import read_jsonl, write_jsonl
from tests.tiny import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def project(tmp_path: Path, base_folder: Path) -> Path:
    """A base whose template refuses system turns, and 40 conversations, every fourth with one."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prepare_prompts"] |= {"validation_share": 0.3, "test_share": 0.3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    base = shutil.copytree(base_folder, tmp_path / "models" / "base")
    (base / "chat_template.jinja").write_text(REFUSING + TEMPLATE)
    write_rows(tmp_path, [conversation(i, "Be short." if i % 4 == 0 else "") for i in range(40)])
    return tmp_path


def conversation(number: int, system: str) -> dict[str, Any]:
    turns = [{"from": "User", "value": f"Question {number}"}, {"from": "Assistant", "value": "old"}]
    return {"system": system, "dataset": "c", "conversations": turns}


def write_rows(project: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(project / "data" / "raw" / "train.jsonl", rows)


def run(project: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "stages.prepare_prompts"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_every_row_is_accounted_for(project: Path) -> None:
    with (project / "data/raw/train.jsonl").open("a") as file:
        file.write("{\n" + json.dumps(conversation(1, "")) + "\n")
    done = run(project)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((project / "metrics/prompts.json").read_text())
    assert metrics["rows"] == 42
    assert metrics["bad_rows"] == {"not JSON": 1}
    assert metrics["dropped"]["refused by the chat template"] == 10
    assert metrics["dropped"]["duplicate"] == 1
    assert sum(metrics["kept"].values()) == 30
    for split, kept in metrics["kept"].items():
        rows = list(read_jsonl(project / f"data/prompts/{split}.jsonl"))
        assert len(rows) == kept > 0
        assert all([m["role"] for m in row["messages"]] == ["user"] for row in rows)


def test_a_template_that_refuses_everything_is_named(project: Path) -> None:
    write_rows(project, [conversation(i, "Be short.") for i in range(40)])
    failed = run(project)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "no prompt is left" in failed.stderr
    assert "'refused by the chat template': 40" in failed.stderr


def test_missing_conversations_are_named(project: Path) -> None:
    (project / "data/raw/train.jsonl").unlink()
    failed = run(project)
    assert failed.returncode == 2
    assert failed.stderr == "specdec: error: there is no data/raw/train.jsonl: run the stage `clone_data` first\n"
