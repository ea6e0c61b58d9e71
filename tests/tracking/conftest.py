"""A finished pipeline on disk and a real MLflow on SQLite, whose tables are made once a session (10 s)."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from specdec.tracking.store import Store, connect
from tests.tracking.example import mlflow_tables, write_results


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    """Half of the time would go into fsync; no test here pulls the plug."""
    connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def tables() -> Path:
    return mlflow_tables()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SPECDEC_EXECUTION", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path, tables: Path, clean: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a project whose drafters wait to be registered; also the working directory."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(tables, root / "mlflow.db")
    write_results(root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def store(project: Path) -> Store:
    return connect(project)
