"""The stage on a tiny pipeline: the evaluation files in metrics, report and MLflow."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.errors import DataError
from specdec.evaluation import Certificate, Check
from specdec.io import sha256_file
from specdec.tracking.store import connect
from stages import evaluate
from tests.stages.measured import make_project, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
BENCH = [{"question_id": i, "category": "qa" if i % 2 else "math", "turns": [f"What is {i}?"]} for i in range(8)]

ABOUT: dict[str, Any] = {
    **dict.fromkeys(("dtype", "device", "deployment", "drafts", "prompts", "skipped", "max_new_tokens", "seed"), "-"),
    "base": {"name": "tiny", "weights": "0" * 64},
    "drafter": {"method": "medusa", "draft_tokens": 2},
}


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_project(tmp_path / "project", base_folder, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["evaluate", "one"])
    # It takes half a minute, and is tested in tests/evaluation/test_certificate.py.
    passed = Certificate([Check("all", True, "nothing was checked")], ABOUT)
    monkeypatch.setattr(evaluate, "certify", lambda *_, **__: passed)
    return made


def list_file(project: Path, file: Path, **evaluate: Any) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["prepare_prompts"]["evaluation_files"] = [{"path": str(file), "sha256": sha256_file(file)}]
    content["evaluate"] |= evaluate
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def load(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_first_prompts_of_each_category(project: Path) -> None:
    bench = project.parent / "bench.jsonl"  # an absolute path, which is no name in MLflow as it is
    write_jsonl(bench, BENCH)
    list_file(project, bench, file_prompts=3)
    evaluate.main()
    figures = load(project / "metrics/evaluate/one.json")
    file = figures["files"][str(bench)]
    assert {name: group["prompts"] for name, group in file["categories"].items()} == {"math": 3, "qa": 3}
    assert (file["prompts"], file["lossless"], figures["lossless"]) == (6, True, True)
    report = project / "reports/one"
    asked = {row["id"] for row in map(json.loads, (report / "files.jsonl").read_text().splitlines())}
    assert asked == {"0", "2", "4", "1", "3", "5"}
    for page in ("report.html", "report.md"):
        assert str(bench) in (report / page).read_text()
        assert sha256_file(bench) in (report / page).read_text()
    store = connect(project)
    runs = store.client.search_runs([store.experiment_id])
    metrics = {name: value for run in runs for name, value in run.data.metrics.items()}
    name = f"files/_{bench}/categories/qa/acceptance_length"
    assert metrics[f"{name}/value"] == file["categories"]["qa"]["acceptance_length"]["value"]
    assert f"{name}/low" in metrics


def test_all_prompts(project: Path) -> None:
    write_jsonl(project / "bench.jsonl", BENCH)
    list_file(project, Path("bench.jsonl"), file_prompts=None)
    evaluate.main()
    assert load(project / "metrics/evaluate/one.json")["files"]["bench.jsonl"]["prompts"] == 8


def test_no_file(project: Path) -> None:
    evaluate.main()
    assert load(project / "metrics/evaluate/one.json")["files"] == {}
    assert not (project / "reports/one/files.jsonl").exists()


def test_a_file_that_changed_is_refused_before_anything_is_measured(project: Path) -> None:
    bench = project / "bench.jsonl"
    write_jsonl(bench, BENCH)
    list_file(project, bench)
    write_jsonl(bench, BENCH[:2])
    shutil.rmtree(project / "models")
    with pytest.raises(DataError, match=r"evaluation_files: .*bench\.jsonl has sha256 "):
        evaluate.main()


def test_another_list_evaluates_again() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["evaluate"]["do"]
    assert {"evaluate", "prepare_prompts.evaluation_files"} <= set(stage["params"])
    assert {"specdec/data/evaluation_files.py", "specdec/data/prompt_files.py"} <= set(stage["deps"])
