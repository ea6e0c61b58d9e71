"""One pipeline over two machines: which runs what; then for real, with the servers that such machines share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from flows.checkout import check_checkout, checkout_id
from flows.graph import Plan, Stage
from flows.machines import waves
from specdec.errors import ConfigError
from tests.flows.conftest import NO_GIT_CONFIG, Toy
from tests.flows.postgres import free_port, postgres
from tests.servers import wait_until_healthy
from tests.tracking.example import REPOSITORY, write_settings

GRAPH = {
    "prompts": (),
    "synthesize": ("prompts",),
    "train@a": ("synthesize",),
    "train@b": ("synthesize",),
    "evaluate@a": ("train@a",),
    "evaluate@b": ("train@b",),
    "register": ("evaluate@a", "evaluate@b"),
}
PLAN = Plan(tuple(Stage(name, needs) for name, needs in GRAPH.items()), frozenset())


def test_each_machine_gets_as_much_as_it_can_do_at_a_time() -> None:
    assert list(waves(PLAN, "gpu", {"synthesize": "serving", "evaluate": "serving", "train@b": "gpu2"})) == [
        {"gpu": ["prompts"]},
        {"serving": ["synthesize"]},
        {"gpu": ["train@a"], "gpu2": ["train@b"]},
        {"serving": ["evaluate@a", "evaluate@b"]},
        {"gpu": ["register"]},
    ]
    assert list(waves(PLAN, "one", {})) == [{"one": list(GRAPH)}]


def test_another_checkout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "params.yaml").write_text("a: 1")
    asked = checkout_id(tmp_path)
    check_checkout(tmp_path, asked)
    (tmp_path / "params.yaml").write_text("a: 2")
    with pytest.raises(ConfigError, match="holds other code or settings"):
        check_checkout(tmp_path, asked)


STAGES = {
    "train": {
        "cmd": "python stage.py train trained.json",
        "deps": ["stage.py"],
        "outs": ["model"],
        "metrics": [{"trained.json": {"cache": False}}],
    },
    "evaluate": {
        "cmd": "python stage.py evaluate evaluated.json",
        "deps": ["stage.py", "model", "trained.json"],
        "outs": ["report"],
        "metrics": [{"evaluated.json": {"cache": False}}],
    },
    "register": {
        "cmd": "echo register >> ran && cp evaluated.json registry.json",
        "deps": ["evaluated.json", "report"],
        "outs": [{"registry.json": {"cache": False}}],
    },
}
# As our own stages do: the evaluation goes on with the MLflow run of the training.
STAGE = """
import json, sys
from pathlib import Path
from specdec.config import load_params
from specdec.tracking import drafter_run

name, metrics = sys.argv[1:]
with open("ran", "a") as file:
    file.write(name + "\\n")
before = json.loads(Path("trained.json").read_text())["mlflow_run"] if name == "evaluate" else None
with drafter_run("one", load_params(Path("params.yaml")), before) as run:
    run.log_metrics({name: 1.0})
folder = Path({"train": "model", "evaluate": "report"}[name])
folder.mkdir(exist_ok=True)
(folder / "file").write_text(name)
Path(metrics).write_text(json.dumps({"mlflow_run": run.run_id}))
"""


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """MLflow with its records in PostgreSQL, its artifacts behind the server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with postgres() as database, (tmp_path / "mlflow.log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        stores = ["--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "artifacts")]
        process = subprocess.Popen(
            [*command, *stores, "--workers", "1"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_healthy(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def fleet(tmp_path: Path, mlflow_server: str, prefect_home: Path, prefect_server: str) -> Iterator[dict[str, Toy]]:
    """Three clones of one repository: `first` and `second` have a worker each, `asks` has none."""
    origin = tmp_path / "origin"
    origin.mkdir()
    ours = ("PREFECT_", "MLFLOW_", "SPECDEC_", "DVC_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= NO_GIT_CONFIG | {
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_TRACKING_URI": mlflow_server,
        "PREFECT_API_URL": prefect_server,
        "PREFECT_HOME": str(prefect_home),
        "PYTHONPATH": str(REPOSITORY),
        "SPECDEC_DVC_REMOTE": "shared",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }

    def run(*command: str, cwd: Path = origin) -> None:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run(sys.executable, "-m", "dvc", "remote", "add", "-q", "shared", str(tmp_path / "remote"))
    write_settings(origin)
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (origin / "stage.py").write_text(STAGE)
    shutil.copy(REPOSITORY / "prefect-machines.yaml", origin)
    (origin / ".gitignore").write_text("/.specdec/\n/ran\n/note.txt\n/model\n/report\n")
    run("git", "add", "-A")
    run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")
    machines = {}
    with ExitStack() as stack:
        for name in ("first", "second", "asks"):
            run("git", "clone", "-q", str(origin), str(tmp_path / name))
            machines[name] = Toy(tmp_path / name, environment)
            if name == "asks":
                continue
            prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
            run(*prefect, "work-pool", "create", name, "--type", "process", "--overwrite")
            deploy = [*prefect, "deploy", "--prefect-file", "prefect-machines.yaml", "--name", name, "--pool", name]
            run(*deploy, cwd=tmp_path / name)
            log = stack.enter_context((tmp_path / f"{name}.log").open("w"))
            worker = subprocess.Popen(
                [*prefect, "worker", "start", "--pool", name, "--limit", "1"],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(worker.wait, 60)
            stack.callback(worker.terminate)
        yield machines


def ask(machine: Toy) -> tuple[int, str]:
    command = [sys.executable, "-m", "flows.machines", "pipeline/first", "evaluate=pipeline/second"]
    done = subprocess.run(
        command, cwd=machine.root, env=machine.environment, capture_output=True, text=True, timeout=180
    )
    return done.returncode, done.stdout + done.stderr


def recorded(mlflow_server: str) -> list[str]:
    """The kind of each MLflow run, with the names of its figures; all of them came to their end."""
    name = {"experiment_name": "specdec"}
    found = httpx.get(f"{mlflow_server}/api/2.0/mlflow/experiments/get-by-name", params=name).json()
    query = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = httpx.post(f"{mlflow_server}/api/2.0/mlflow/runs/search", json=query).json()["runs"]
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    kinds = [{t["key"]: t["value"] for t in run["data"]["tags"]}["specdec.kind"] for run in runs]
    figures = [sorted(m["key"] for m in run["data"].get("metrics", [])) for run in runs]
    return sorted(" ".join([kind, *names]) for kind, names in zip(kinds, figures, strict=True))


@pytest.mark.soak
def test_two_workers_share_a_pipeline(fleet: dict[str, Toy], mlflow_server: str) -> None:
    code, output = ask(fleet["asks"])
    logs = "\n".join((fleet["asks"].root.parent / f"{name}.log").read_text() for name in ("first", "second"))
    assert code == 0, output + logs
    assert fleet["first"].lines("ran") == ["train", "register"]
    assert fleet["second"].lines("ran") == ["evaluate"]
    assert "train: brought from the remote" in logs
    assert "evaluate: brought from the remote" in logs
    assert recorded(mlflow_server) == ["drafter evaluate train", "execution"]
    (fleet["first"].root / "params.yaml").write_text("{}")
    code, output = ask(fleet["asks"])
    assert code == 2, output
    assert "pipeline/first (train): Failed: " in output.splitlines()[-1]
    assert "holds other code or settings" in output.splitlines()[-1]
