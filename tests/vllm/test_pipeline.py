"""The whole pipeline from one command, with vLLM as its server and as its engine."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from specdec.serving.vllm import VLLM_PYTHON, Vllm
from tests.integration.conftest import SMALL, make_project, write_dataset
from tests.settings import medusa

pytestmark = pytest.mark.vllm


def test_from_conversations_to_a_version_that_vllm_has_loaded(tmp_path: Path, base_folder: Path, vllm: Vllm) -> None:
    write_dataset(tmp_path / "data")
    project = make_project(tmp_path / "project", base_folder, tmp_path / "data")
    project.environment[VLLM_PYTHON] = os.environ[VLLM_PYTHON]
    project.params(
        drafters={"medusa": medusa(max_length=128, features="vllm", vllm_args=["--enforce-eager"])},
        synthesize=SMALL["synthesize"] | {"engine": "vllm"},
        benchmark=SMALL["benchmark"] | {"engine": "auto"},
        register=SMALL["register"] | {"require_engine": True, "max_engine_difference": 0.1},
    )
    project.git("init", "-q", "-b", "main")
    project.git("add", "-A")
    project.git("commit", "-qm", "all")
    code, output = project.run("flows.pipeline")
    assert code == 0, output

    def load(file: str) -> Any:
        return json.loads((project.root / file).read_text())

    synthesis = load("metrics/synthesis.json")
    assert synthesis["engine"] == "vllm"
    assert set(synthesis["data"]["train"]["token_ids_from"]) == {"server"}
    figures = load("metrics/engine/medusa.json")
    own = figures["draft_lengths"]["2"]
    assert figures["engine"] == vllm.version
    # Six prompts of 12 tokens through heads that have learnt little: the exact ones are in test_engine.py.
    assert own["acceptance_length"]["value"] >= 1
    assert own["same_as_plain"]["share"] == 1.0
    assert set(own["loads"]) == {"1", "2"}
    assert "vLLM hands out the states of layers 2, " in " ".join(output.split())
    version = load("registry.json")["versions"]["medusa"]
    assert version["promoted"], version["reason"]
    assert version["engine"].startswith(f"vLLM {vllm.version}")
    assert version["engine"] in " ".join(output.split())
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(project.root) in str(p.info["cmdline"])
    ]
    assert not left
