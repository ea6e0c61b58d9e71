"""The stage: skipped where there is no vLLM, and what it writes where there is one."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.errors import ConfigError, DataError
from specdec.serving.vllm import Vllm
from stages import benchmark
from tests.stages.measured import make_project

VLLM = Vllm("/venv/bin/python", "0.32.0", "2.13.0+cpu", 0)
NAMES = ["test", "one"]


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_project(tmp_path / "project", base_folder, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["benchmark", "one"])
    monkeypatch.setattr(benchmark, "find_vllm", lambda: VLLM)
    return made


def change(project: Path, **settings: Any) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["benchmark"] |= settings
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def load(file: Path) -> Any:
    return json.loads(file.read_text())


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def figures(length: float) -> dict[str, Any]:
    """Of `specdec.evaluation.engine.benchmark`, with two draft lengths at two loads."""
    spread = {"p50": 0.1, "p90": 0.2, "p99": 0.3}
    sides = {"plain": spread, "drafter": spread}
    load = {
        "speedup": interval(1.3),
        "tokens_per_second": {"plain": 100.0, "drafter": 130.0},
        "acceptance_length": interval(length),
        "latency": sides,
        "time_to_first_token": sides,
    }
    same = {"share": 1.0, "first_difference": None}
    one = {
        "acceptance_length": interval(length),
        "position_rates": [0.5, 0.3],
        "conditional_rates": [0.5, 0.6],
        "predicted": interval(1.8),
        "difference": length / 1.8 - 1,
        "same_as_plain": same | {"share": 0.9, "first_difference": 4},
        "same_as_ours": same,
        "loads": {"1": load, "16": load},
    }
    return {"prompts": 3, "draft_lengths": {"2": one, "1": one}, "best": {"1": 2, "16": None}}


@pytest.mark.parametrize(
    ("engine", "vllm", "why", "advice"),
    [
        ("none", VLLM, "benchmark.engine is none", "\n"),
        ("auto", None, "vLLM is not installed", r" for /.*`specdec doctor`.*dvc repro -f -s benchmark@one"),
    ],
)
def test_without_an_engine_it_is_skipped_and_says_so(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: str,
    vllm: Any,
    why: str,
    advice: str,
) -> None:
    """Where it looked is said, and not recorded: the registry, which others read, holds no path of this machine."""
    change(project, engine=engine)
    monkeypatch.setattr(benchmark, "find_vllm", lambda: vllm)
    monkeypatch.setattr(benchmark, "benchmark", lambda *_: pytest.fail("nothing is to be started"))
    benchmark.main()
    for file in (project / "metrics/engine/one.json", project / "engine/one/figures.json"):
        assert load(file) == {"skipped": why}
    assert re.search(f"skipped: {why}{advice}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("vllm", "told"),
    [
        (None, "benchmark.engine is vllm, and vLLM is not installed for .*SPECDEC_VLLM_PYTHON"),
        (Vllm("/p", "0.8.5", "2.6", 0), r"vLLM 0\.8\.5 .* is too old: install a newer one"),
    ],
)
def test_an_engine_that_is_wanted_must_be_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, vllm: Any, told: str
) -> None:
    change(project, engine="vllm")
    monkeypatch.setattr(benchmark, "find_vllm", lambda: vllm)
    with pytest.raises(ConfigError, match=told):
        benchmark.main()
    assert not (project / "metrics/engine/one.json").exists()


def test_what_it_asks_for_and_what_it_writes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, engine="vllm", draft_lengths=[1, 5], max_new_tokens=12, prompts=3, engine_args=["--x", "1"])
    asked: list[Any] = []
    monkeypatch.setattr(benchmark, "benchmark", lambda *given: asked.append(given) or figures(1.79))
    benchmark.main()
    (_, base), (drafter, folder), prompts, plan, _, _ = asked[0]
    assert (base, folder) == (Path("models/base"), Path("models/drafters/one"))
    assert plan.draft_lengths == (drafter.draft_tokens, 1), "a chain of 5 is longer than there are heads"
    assert (plan.max_new_tokens, plan.arguments) == (12, ("--x", "1"))
    assert len(prompts) == 3
    found = load(project / "metrics/engine/one.json")
    assert found["difference"] == pytest.approx(1.79 / 1.8 - 1)
    assert (found["engine"], found["device"]) == ("0.32.0", "cpu")
    folder = project / "engine/one"
    assert load(folder / "figures.json") == found
    config = {"method": "medusa", "model": "models/drafters/one", "num_speculative_tokens": 2}
    assert load(folder / "speculative_config.json") == {"1": config, "16": None}
    page = (folder / "report.html").read_text()
    for words in ("vLLM 0.32.0", "1.79 [1.69, 1.89]", "-0.6 %", "90 %, from token 5 on", "chain of 2", "no drafter"):
        assert words in page, words
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"


def test_prompts_that_leave_no_room_for_an_answer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, engine="vllm", max_new_tokens=500, max_model_len=501)
    with pytest.raises(DataError, match=r"raise that one"):
        benchmark.main()
