"""The pipeline, whole: one flow from conversations to a registered, generating model; then what runs again."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as safetensors_load
from safetensors.torch import load_file

from tests.integration.conftest import KEY, ROOT, Project, make_project
from tests.settings import medusa

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, dataset: Path) -> Project:
    made = make_project(tmp_path_factory.mktemp("pipeline") / "project", base_folder, dataset)
    made.git("init", "-q", "-b", "main")
    made.git("add", "-A")
    made.git("commit", "-qm", "all")
    code, output = made.run("flows.pipeline")
    assert code == 0, output
    (made.root / "first.log").write_text(output)
    return made


def load(project: Project, path: str) -> Any:
    return json.loads((project.root / path).read_text())


def rows(project: Project, path: str) -> list[Any]:
    return [json.loads(line) for line in (project.root / path).read_text().splitlines()]


def test_the_key_is_nowhere(project: Project) -> None:
    """Not in logs, metrics, MLflow's database and artifacts, Prefect's, the journal, or what DVC keeps."""
    files = [file for file in project.root.rglob("*") if file.is_file() and not file.is_symlink()]
    assert {"mlflow.db", "first.log", "server.log", "dvc.lock"} <= {file.name for file in files}
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_every_stage_did_its_work(project: Project) -> None:
    source = load(project, "data/raw/source.json")
    assert source["rows"] == 150
    assert len(source["commit"]) == 40
    prompts = load(project, "metrics/prompts.json")
    assert prompts["rows"] == 150
    dropped = sum(sum(reasons.values()) for reasons in prompts["dropped"].values())
    assert sum(prompts["kept"].values()) + dropped == 150
    assert (project.root / "data/prompts/report.html").stat().st_size > 20_000
    answered = rows(project, "data/synthetic/train.jsonl")
    asked = {r["id"]: r for r in rows(project, "data/prompts/train.jsonl")}
    assert 20 <= len(answered) <= 40
    for row in answered:
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        wanted = [m["content"] for m in asked[row["id"]]["messages"] if m["role"] == "user"]
        assert users == wanted[: len(users)]
    for drafter in ("medusa", "wide"):
        figures = load(project, f"metrics/evaluate/{drafter}.json")
        assert figures["lossless"] is True
        assert figures["certificate"] is True
        certificate = load(project, f"reports/{drafter}/certificate.json")
        assert certificate["passed"] is True
        assert certificate["deployment"] == "bfloat16"
        assert figures["prompts"] == 6
        assert {c: g["prompts"] for c, g in figures["files"]["bench.jsonl"]["categories"].items()} == {
            "c0": 2,
            "c1": 2,
        }
        assert (project.root / "reports" / drafter / "report.html").stat().st_size > 20_000
        assert load(project, f"models/drafters/{drafter}/config.json")["architectures"] == ["MedusaModel"]


def test_a_table_and_where_to_look(project: Project) -> None:
    output = (project.root / "first.log").read_text()
    assert (project.root / "comparison/report.html").stat().st_size > 20_000
    first = load(project, "comparison/comparison.json")["champion"]
    assert first["told"] == "no champion yet: no version of specdec-tiny-llama is promoted"
    for word in ("acceptance length", "position rates", "speedup", "lossless", "champion", "report.html"):
        assert word in output
    assert "make mlflow" in output
    assert "make prefect" in output


def test_mlflow_holds_the_runs_and_a_model_that_generates(project: Project) -> None:
    registry = load(project, "registry.json")
    assert registry["model"] == "specdec-tiny-llama"
    assert {v["version"] for v in registry["versions"].values()} == {"1", "2"}
    assert sum("champion" in v["aliases"] for v in registry["versions"].values()) == 1
    script = """
import json, mlflow
client = mlflow.MlflowClient()
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
parents = {r.data.tags.get("mlflow.parentRunId") for r in runs} - {None}
model = mlflow.pyfunc.load_model("models:/specdec-tiny-llama@champion")
made = model.predict(["What is 5?"], params={"max_new_tokens": 8})
print(json.dumps({"runs": len(runs), "parents": len(parents), "made": str(made),
    "status": sorted({r.info.status for r in runs}),
    "metrics": sorted(k for r in runs for k in r.data.metrics)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.root.parent,
        env={k: v for k, v in project.environment.items() if k != "PYTHONPATH"}
        | {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/mlflow.db"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 3
    assert found["parents"] == 1
    assert found["status"] == ["FINISHED"]
    assert "validation/acceptance_length" in found["metrics"]
    assert "test/acceptance_length" in found["metrics"]
    assert "acceptance_length" in found["made"]


def test_the_readmes_python_runs(project: Project) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (project.root / "readme.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=project.root, env=project.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) >= 1


def test_a_second_run_runs_nothing(project: Project) -> None:
    code, output = project.run("flows.pipeline")
    assert code == 0, output
    assert output.count("up to date") == 12
    assert "Running stage" not in output
    code, output = project.run("dvc", "repro")
    assert code == 0
    assert "Running stage" not in output
    assert "Data and pipelines are up to date" in output


def test_one_drafters_training_settings_rerun_only_what_depends_on_them(project: Project) -> None:
    registry = load(project, "registry.json")["versions"]
    project.params(
        drafters={"medusa": medusa(max_length=128), "wide": medusa(max_length=128, seed=1, learning_rate=2e-3)}
    )
    code, output = project.run("dvc", "repro")
    assert code == 0, output
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    assert (ran[0], ran[-1]) == ("train@wide", "register")
    assert sorted(ran[1:-1]) == ["benchmark@wide", "compare", "evaluate@wide"]
    after = load(project, "registry.json")["versions"]
    assert after["medusa"]["version"] == registry["medusa"]["version"]
    assert after["wide"]["version"] == "3"
    champion = load(project, "comparison/comparison.json")["champion"]
    assert champion["version"] in ("1", "2")
    assert champion["row"] in ("medusa", "champion (version 2)")


def test_training_goes_on_from_a_registered_drafter(project: Project) -> None:
    version = load(project, "registry.json")["versions"]["medusa"]["version"]
    weights = (project.root / "models/drafters/medusa/model.safetensors").read_bytes()
    address = f"models:/specdec-tiny-llama/{version}"
    still = medusa(max_length=128, learning_rate=1e-9, warm_start=address)
    project.params(drafters={"medusa": medusa(max_length=128), "wide": still})
    code, output = project.run("stages.train", "wide")
    assert code == 0, output
    before, after = safetensors_load(weights), load_file(project.root / "models/drafters/wide/model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-6)
    provenance = load(project, "models/drafters/wide/specdec.json")
    start = {"drafter": address, "sha256": hashlib.sha256(weights).hexdigest()}
    assert provenance["warm_start"] == load(project, "metrics/train/wide.json")["warm_start"] == start
    assert provenance["settings"]["training"]["warm_start"] == address


def test_bad_settings_run_nothing(project: Project) -> None:
    before = (project.root / "params.yaml").read_text()
    project.params(evaluate={"max_new_tokens": 0})
    code, output = project.run("flows.pipeline")
    (project.root / "params.yaml").write_text(before)
    assert code == 2
    assert "evaluate.max_new_tokens: " in output
    assert "Running stage" not in output


def test_a_stage_that_fails_is_named(project: Project) -> None:
    before = (project.root / "params.yaml").read_text()
    project.params(fetch_base={"source": str(project.root / "docs-that-are-not"), "revision": None})
    code, output = project.run("dvc", "repro", "--single-item", "fetch_base")
    (project.root / "params.yaml").write_text(before)
    assert code != 0
    assert "specdec: error: " in output
    assert "docs-that-are-not" in output


def test_killed_at_any_moment_it_finishes_with_the_same_data(
    tmp_path: Path, base_folder: Path, dataset: Path, project: Project
) -> None:
    """No git around either: a source tarball. Killed in synthesis and in training, then left alone."""
    cut = make_project(tmp_path / "tarball", base_folder, dataset)
    cut.params(drafters={"medusa": medusa(max_length=128)})

    def kill_when(reached: Any) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline"],
            cwd=cut.root,
            env=cut.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 150
        while not reached() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)

    def answered() -> list[bytes]:
        journals = list(cut.root.glob(".specdec/synthesize/*.jsonl"))
        return journals[0].read_bytes().splitlines() if journals else []

    kill_when(lambda: len(answered()) > 10)
    kept = set(answered()[:-1])
    kill_when(lambda: list(cut.root.glob(".specdec/train/medusa/*/checkpoint-5/complete")))
    code, output = cut.run("flows.pipeline")
    assert code == 0, output
    assert "going on from checkpoint-" in output
    assert kept <= set(answered())
    for split in ("train", "validation"):
        name = f"data/synthetic/{split}.jsonl"
        assert (cut.root / name).read_bytes() == (project.root / name).read_bytes()
    weights = "models/drafters/medusa/model.safetensors"
    assert (cut.root / weights).read_bytes() == (project.root / weights).read_bytes()
