"""The stage as DVC runs it: a process, its files and its exit codes; killed at random, too."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracking.example import REPOSITORY, mlflow_tables, write_results


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_results(tmp_path)
    shutil.copy(mlflow_tables(), tmp_path / "mlflow.db")
    return tmp_path


def start(project: Path, **environment: str) -> "subprocess.Popen[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SPECDEC_", "DVC_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.register"],
        cwd=project,
        env={**kept, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project: Path, **environment: str) -> tuple[int, str, str]:
    process = start(project, **environment)
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def test_it_writes_the_receipt(project: Path) -> None:
    code, out, error = run(project)
    assert code == 0, error
    receipt = json.loads((project / "registry.json").read_text())
    assert receipt["versions"]["one"]["aliases"] == ["champion"]
    assert "one: registered as version 1 of specdec-base" in out


@pytest.mark.soak
def test_killed_at_a_random_moment_it_completes(project: Path) -> None:
    process = start(project)
    assert process.stdout is not None
    for line in process.stdout:
        if "uploading" in line:
            break
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert not (project / "registry.json").exists()
    assert run(project)[0] == 0
    versions = json.loads((project / "registry.json").read_text())["versions"]
    assert sorted(v["version"] for v in versions.values()) == ["1", "2"]


def test_what_is_missing_is_said_in_one_line(project: Path) -> None:
    (project / "metrics/evaluate/two.json").unlink()
    code, _, error = run(project)
    assert code == 2
    assert error.strip().splitlines()[-1].startswith("specdec: error: ")
    assert "metrics/evaluate/two.json lacks a figure" in error


@pytest.mark.soak
def test_an_mlflow_that_is_away_may_come_back(project: Path) -> None:
    code, _, error = run(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 75
    assert "specdec: error: MLflow at http://127.0.0.1:9 does not answer" in error
    assert not (project / "registry.json").exists()
