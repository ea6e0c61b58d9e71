"""The command lines of the engines."""

import sys
from pathlib import Path

import pytest
import torch

from specdec.config import Synthesize
from specdec.errors import ConfigError
from specdec.serving.engines import launch

KEY = "sk-engines-1234"


def fake_python(folder: Path, module: bool = True, script: int | None = 0) -> Path:
    """An environment whose python says whether vLLM is there; its `vllm` command exits with `script`."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *cuda*) exit 1;; *) exit {0 if module else 1};; esac\n')
    python.chmod(0o755)
    if script is not None:
        (folder / "vllm").write_text(f"#!/bin/sh\nexit {script}\n")
        (folder / "vllm").chmod(0o755)
    return python


@pytest.fixture
def vllm(settings: Synthesize) -> Synthesize:
    return settings.model_copy(update={"engine": "vllm", "engine_args": ["--quantization", "fp8"]})


def test_transformers(settings: Synthesize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_API_KEY", "sk-of-another-server")
    more = settings.model_copy(update={"engine_args": ["--cb-num-blocks", "7"]})
    plan = launch("transformers", Path("/m"), more, 1234, KEY, 32)
    assert plan.command[:4] == [sys.executable, "-m", "specdec.serving.transformers_server", "/m"]
    line = " ".join(plan.command)
    assert "--host 127.0.0.1 --port 1234" in line
    assert "--dtype float32" in line
    assert line.endswith("--cb-num-blocks 7"), "ours come first, so that the user's win"
    assert KEY not in line
    assert plan.environment["SPECDEC_SERVER_KEY"] == KEY
    assert plan.environment["HF_HUB_OFFLINE"] == "1"
    assert "SPECDEC_API_KEY" not in plan.environment


def test_vllm_by_its_command(vllm: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(fake_python(tmp_path)))
    plan = launch("vllm", Path("/m"), vllm, 1234, KEY, 32)
    assert plan.command[:3] == [str(tmp_path / "vllm"), "serve", "/m"]
    line = " ".join(plan.command)
    assert "--dtype float32 --max-model-len 256 --generation-config vllm" in line
    assert line.endswith("--quantization fp8")
    assert KEY not in line
    assert plan.environment["VLLM_API_KEY"] == KEY
    assert not plan.seeds, "the CPU build dies of them"
    assert plan.most_in_flight is None, "it queues without bound"


@pytest.mark.parametrize(("concurrency", "most"), [(None, 64), (7, 7)])
def test_the_cache_of_transformers_has_room_for_the_requests_in_flight(
    concurrency: int | None, most: int, settings: Synthesize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan = launch("transformers", Path("/m"), settings.model_copy(update={"max_model_len": 300}), 1, KEY, concurrency)
    assert f"--cb-num-blocks {2 * most} " in " ".join(plan.command)
    assert plan.most_in_flight == most


@pytest.mark.parametrize("script", [1, None])
def test_vllm_by_its_module_where_the_command_is_broken(
    script: int | None, vllm: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = fake_python(tmp_path, script=script)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(python))
    plan = launch("vllm", Path("/m"), vllm, 1234, KEY, 32)
    assert plan.command[:5] == [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "/m"]


def test_vllm_that_is_not_there(vllm: Synthesize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(fake_python(tmp_path, module=False)))
    with pytest.raises(ConfigError, match=r"pip install vllm.*SPECDEC_VLLM_PYTHON"):
        launch("vllm", Path("/m"), vllm, 1234, KEY, 32)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="not installed"):
        launch("vllm", Path("/m"), vllm, 1234, KEY, 32)
