"""Where MLflow is, the first contact with it, and what goes wrong then."""

import concurrent.futures
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import TrackingError, TransientError
from specdec.tracking import drafter_run, execution_run
from specdec.tracking.register import register
from specdec.tracking.store import connect, hide_credentials, locate, project_root
from tests.tracking.example import REPOSITORY, params, write_json
from tests.tracking.mlflow_server import MlflowServer, free_port


def test_the_default_is_in_the_root_wherever_one_stands(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "models")
    assert project_root() == project
    location = locate()
    assert location.uri == f"sqlite:///{project}/mlflow.db"
    assert location.artifacts == project / "mlartifacts"


def test_a_relative_database_is_taken_from_the_root(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///sub/other.db")
    assert locate(project).uri == f"sqlite:///{project}/sub/other.db"
    assert locate(project).artifacts == project / "sub/mlartifacts"


FIRST_CONTACT = "from pathlib import Path; from specdec.tracking.store import connect; connect(Path('.'))"


@pytest.mark.soak
def test_several_processes_may_meet_a_new_database(tmp_path: Path, clean: None) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def contact(_number: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", FIRST_CONTACT]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = list(pool.map(contact, range(2)))
    assert [r.returncode for r in results] == [0, 0], results
    assert sum("preparing the MLflow database" in r.stdout for r in results) == 1


def test_a_half_made_database_is_made_again(
    tmp_path: Path, tables: Path, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".mlflow.db.part").write_text("left by a killed process")
    (tmp_path / "mlflow.db").touch()
    real, made = subprocess.run, []

    def upgrade(command: list[str], **named: Any) -> Any:
        if "upgrade" not in command:
            return real(command, **named)
        made.append(command)
        aside = Path(command[-1].removeprefix("sqlite:///"))
        assert not aside.exists()
        aside.write_bytes(tables.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", upgrade)
    connect(tmp_path)
    connect(tmp_path)
    assert len(made) == 1


def test_a_file_that_is_no_database_is_named(project: Path) -> None:
    (project / "mlflow.db").write_text("hello " * 1000)
    with pytest.raises(TrackingError, match=r"mlflow\.db is no MLflow database"):
        connect(project)


DIES_WRITING = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("pragma cache_size = 1")
database.execute("update experiments set name = 'half' where name = 'specdec'")
numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 50000)"
database.execute(f"create table large as {numbers} select i, hex(randomblob(50)) from n")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_in_the_journal_costs_no_record(project: Path) -> None:
    """SQLite rolls it back when the file is opened for writing; a reader alone would see no tables at all."""
    experiment = connect(project).experiment_id
    subprocess.run([sys.executable, "-c", DIES_WRITING, str(project / "mlflow.db")], check=False)
    assert (project / "mlflow.db-journal").stat().st_size
    store = connect(project)
    assert store.experiment_id == experiment
    assert store.client.get_experiment(experiment).name == "specdec"


def test_a_locked_database_is_waited_for_and_never_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.tracking.store._LOCKED_SECONDS", 0.1)
    before = (project / "mlflow.db").stat().st_ino
    with sqlite3.connect(project / "mlflow.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        with pytest.raises(TransientError, match=r"mlflow\.db cannot be read now \(database is locked\)"):
            connect(project)
        other.execute("rollback")
    other.close()
    assert (project / "mlflow.db").stat().st_ino == before


def test_another_programs_database_is_left_alone(project: Path) -> None:
    (project / "mlflow.db").unlink()
    with sqlite3.connect(project / "mlflow.db") as theirs:
        theirs.execute("create table accounts (name)")
    theirs.close()
    with pytest.raises(TrackingError, match=r"is no MLflow database \(its tables are others\)"):
        connect(project)


def test_a_database_of_another_version_is_refused_with_the_command(project: Path) -> None:
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    database.close()
    with pytest.raises(TrackingError, match=r"another version of MLflow.*db upgrade sqlite:///"):
        connect(project)


def test_a_deleted_experiment_is_named(project: Path) -> None:
    store = connect(project)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match=r"'specdec' .* was deleted"):
        connect(project)


def test_a_server_that_is_not_there_is_said_quickly(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(TransientError, match="does not answer") as caught:
        connect(project)
    assert time.monotonic() - started < 15
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_are_hidden_anywhere() -> None:
    assert hide_credentials("see http://a:b@h/x and https://t@h") == "see http://***@h/x and https://***@h"
    assert hide_credentials("mail me@home, http://h/a@b") == "mail me@home, http://h/a@b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p/w@host/db", "postgresql://***@host/db"),
        ("http://u:p@ss@host and more", "http://***@host and more"),
        ("http://u@host:80/x", "http://***@host:80/x"),
        ("http://u:it's@host", "http://***@host"),
        ("http://h/?to=http://u:p@other", "http://h/?to=http://***@other"),
        ("http://h?password=secret", "http://h?password=***"),
        ("http://h/x?a=1&Access-Token=se@cret&b=2 yes", "http://h/x?a=1&Access-Token=***&b=2 yes"),
        ("http://h:1/?key=a@b", "http://***"),  # part of a password or of a key: both are hidden
        ("http://u:p?key=x@h", "http://***"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://h:5000/api?page=2", "http://h:5000/api?page=2"),
    ],
)
def test_what_is_hidden_of_a_url(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown
    assert hide_credentials(shown) == shown


# Letters that the rest of the URLs below does not hold, and every mark that has a meaning in a URL.
SECRET = st.text("XYZ0/@:?#&=%;'\"<>[].-_~!$()*+,", min_size=1).filter(lambda s: any(c in s for c in "XYZ"))


@given(SECRET, st.sampled_from(["http", "postgresql+psycopg2"]), st.sampled_from(["", ":80", "/db?mode=ro"]))
def test_no_part_of_a_password_is_shown(secret: str, scheme: str, rest: str) -> None:
    shown = hide_credentials(f"see '{scheme}://user:{secret}@host{rest}' or ask")
    assert not set(shown) & set("XYZ")
    assert shown.startswith(f"see '{scheme}://***")
    assert shown.endswith(" or ask")


@given(
    SECRET.filter(lambda s: "&" not in s),  # which ends a value
    st.sampled_from(["password", "db_passwd", "token", "apikey", "client_secret", "Key"]),
    st.sampled_from(["http://h/?", "http://h:80?a=b&", "postgresql://user:word@h/db?"]),
)
def test_no_part_of_a_querys_secret_is_shown(secret: str, name: str, before: str) -> None:
    shown = hide_credentials(f"{before}{name}={secret}&b=1 or ask")
    assert not set(shown) & set("XYZ")
    assert shown.endswith("&b=1 or ask")


@pytest.fixture
def server(tables: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback, with its own database and artifacts."""
    started = MlflowServer(tmp_path / "server", tables)
    try:
        started.start()
        yield started.url
    finally:
        started.end()


def test_a_server_keeps_everything_and_nothing_is_left_here(
    project: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("SPECDEC_EXECUTION", "on a server")
    with execution_run(params()), drafter_run("one", params(), None) as run:
        run.log_metrics({"loss": float("nan"), "fine": 1.0})
        run.log_artifacts(project / "reports/one", "evaluation")
    write_json(project / "metrics/train/one.json", {"mlflow_run": run.run_id})
    receipt = register(params(), lambda line: None)
    assert receipt["versions"]["one"]["aliases"] == ["champion"]
    assert receipt["versions"]["one"]["run_id"] == run.run_id
    again = register(params(), lambda line: None)
    assert again["versions"]["one"]["version"] == "1"
    assert again["versions"]["two"]["version"] == "2"
    store = connect(project)
    assert [f.path for f in store.client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/report.html"]
    assert not (project / "mlflow.db").exists()
    assert not (project / "mlartifacts").exists()


def test_a_server_that_goes_away_stops_no_training(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    real, away = MlflowClient.log_batch, []

    def sometimes(*arguments: object, **named: object) -> object:
        if away and named.get("metrics"):
            raise MlflowException("HTTPConnectionPool(host='x'): Max retries exceeded: Connection refused")
        return real(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    monkeypatch.setattr("specdec.tracking.runs._FLUSH_SECONDS", 0.0)
    with drafter_run("one", params(), None) as run:
        away.append(True)
        run.log_metrics({"loss": 3.0}, step=1)
        run.log_metrics({"loss": 2.0}, step=2)
        away.clear()
        run.log_metrics({"loss": 1.0}, step=3)
    history = connect(project).client.get_metric_history(run.run_id, "loss")
    assert [m.value for m in history] == [3.0, 2.0, 1.0]
    assert capsys.readouterr().err.count("figures are kept and sent later") == 1
    with drafter_run("one", params(), None) as run:
        run.log_metrics({"loss": 3.0})
    run.log_metrics({"loss": 2.0})
    away.append(True)
    run.log_metrics({"loss": 1.0})
    with pytest.raises(TransientError, match="Connection refused"):
        run.flush()  # in the end it must arrive
