"""A toy project: the real flow over a DVC pipeline whose stages are small shell commands."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import wait_until_healthy
from tests.tracking.example import REPOSITORY, mlflow_tables, write_settings

NO_GIT_CONFIG = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@dataclass(frozen=True)
class Toy:
    """A project in `root`; `environment` is what the flow is started with."""

    root: Path
    environment: dict[str, str]

    def stages(self, **stages: Any) -> None:
        (self.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def start(self, own_group: bool = False) -> "subprocess.Popen[str]":
        """own_group: as a shell at a terminal starts a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline"],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_group,
        )

    def run(self) -> tuple[int, str]:
        """(exit code, everything that was printed)."""
        process = self.start()
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def lines(self, file: str) -> list[str]:
        """What the stages wrote down about themselves."""
        path = self.root / file
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def without_server(self) -> "Toy":
        """The same project, with no Prefect server to talk to."""
        return replace(self, environment={k: v for k, v in self.environment.items() if k != "PREFECT_API_URL"})


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project with git, DVC and MLflow's tables."""
    root = tmp_path_factory.mktemp("prepared") / "project"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True, env={**os.environ, **NO_GIT_CONFIG})
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    shutil.copy(mlflow_tables(), root / "mlflow.db")
    return root


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's own database is made once (10 s)."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path) -> Iterator[str]:
    """A real Prefect server on loopback: with it a flow starts in a second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (prefect_home / "log").open("w") as log:
        process = subprocess.Popen([*command, "--no-ui"], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_until_healthy(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def make_toy(root: Path, prepared: Path, prefect_home: Path, prefect_server: str) -> Toy:
    """A project of its own; its flows are recorded by the session's server."""
    shutil.copytree(prepared, root)
    write_settings(root)
    ours = ("PREFECT_", "MLFLOW_", "SPECDEC_", "DVC_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    environment |= {
        **NO_GIT_CONFIG,
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_API_URL": prefect_server,
        "COLUMNS": "200",
    }
    return Toy(root, environment)


@pytest.fixture
def toy(tmp_path: Path, prepared: Path, prefect_home: Path, prefect_server: str) -> Toy:
    return make_toy(tmp_path / "project", prepared, prefect_home, prefect_server)


@pytest.fixture(scope="module")
def shared_toy(
    tmp_path_factory: pytest.TempPathFactory, prepared: Path, prefect_home: Path, prefect_server: str
) -> Toy:
    """For a run that several tests look at: a flow takes some seconds."""
    return make_toy(tmp_path_factory.mktemp("shared") / "project", prepared, prefect_home, prefect_server)
