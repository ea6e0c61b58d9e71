"""What goes from a real registry and what stays, killed in between too."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from specdec.errors import TrackingError
from specdec.io import sha256_file
from specdec.tracking.clean import registry_of, registry_removals
from specdec.tracking.fetch_version import fetch_version
from specdec.tracking.model import drafter_identity
from specdec.tracking.promotion import aliases_of, promote
from specdec.tracking.purge import remove_version
from specdec.tracking.register import register
from specdec.tracking.release import promote_by_hand
from specdec.tracking.store import Store, connect
from tests.tracking.example import (
    IDENTITY,
    params,
    write_drafter,
    write_figures,
    write_json,
    write_results,
    write_settings,
)

NAME = "specdec-base"
ONE = {"one": params().drafters["one"].model_dump()}
PLACES = (  # where MLflow's tables name the project's folder
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("tags", "value"),
)
LATER = datetime.now(UTC) + timedelta(days=60)  # nothing was promoted lately then


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Path:
    """Five versions of ours, and a sixth that somebody else made of a run: a minute of work for one test alone."""
    root = tmp_path_factory.mktemp("template") / "project"
    root.mkdir()
    shutil.copy(tables, root / "mlflow.db")
    write_results(root)
    write_settings(root, drafters=ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(root)
        for number in range(5):  # each worse than the last, so the first stays the champion
            write_drafter(root, "one", weights=f"weights {number}")
            write_figures(root, "one", speedup=1.5 - number / 100)
            register(params(drafters=ONE), lambda _: None)
        store = connect(root)
        run = store.client.create_run(store.experiment_id).info.run_id
        store.client.create_model_version(NAME, source=f"runs:/{run}/x", run_id=run)
    return root


@pytest.fixture
def registered(template: Path, tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template. Version 1 is the champion, 5 the challenger."""
    root = tmp_path / "project"
    shutil.copytree(template, root)
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        for table, column in PLACES:
            told = f"update {table} set {column} = replace({column}, ?, ?)"
            database.execute(told, (str(template), str(root)))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def store(registered: Path) -> Store:
    return connect(registered)


def what_goes(root: Path, keep: int, now: datetime | None = None) -> list[str]:
    registry = registry_of(root, keep, now)
    assert registry is not None
    return [removal.what for removal in registry_removals(registry, keep)]


def clean(root: Path, keep: int, now: datetime | None = None) -> None:
    registry = registry_of(root, keep, now)
    assert registry is not None
    for removal in list(registry_removals(registry, keep)):
        assert removal.bytes is None or removal.bytes >= 0
        removal.remove()


def numbers(store: Store) -> list[int]:
    return sorted(int(v.version) for v in store.client.search_model_versions(f"name = '{NAME}'"))


def models(root: Path) -> set[str]:
    return {folder.name for folder in (root / "mlartifacts/models").iterdir()}


def check_whole(root: Path, store: Store) -> None:
    """Every version that specdec registered is there in every byte, and no alias points elsewhere."""
    for version in store.client.search_model_versions(f"name = '{NAME}'"):
        if version.source.startswith("models:/"):
            model = store.client.get_logged_model(version.source.removeprefix("models:/"))
            files = root / f"mlartifacts/models/{model.model_id}/artifacts/artifacts"
            assert drafter_identity(files / "drafter", IDENTITY) == version.tags["specdec.identity"]
            assert (files / "evaluation/report.html").is_file()
    aliases = aliases_of(store, NAME)
    assert {int(number) for number in aliases.values()} <= set(numbers(store))


def test_exactly_the_old_ones_go(registered: Path, store: Store) -> None:
    store.client.set_registered_model_alias(NAME, "challenger", "2")
    first = store.client.get_model_version(NAME, "1")
    weights = registered / f"mlartifacts/models/{first.source.removeprefix('models:/')}/artifacts/artifacts/drafter"
    before = sha256_file(weights / "model.safetensors")
    foreign = store.client.create_registered_model("somebody-elses")
    model = store.client.create_logged_model(store.experiment_id, name="theirs")
    for _ in range(3):
        store.client.create_model_version(foreign.name, source=f"models:/{model.model_id}")
    assert what_goes(registered, 2) == ["version 3 of specdec-base (one)", "version 4 of specdec-base (one)"]
    assert numbers(store) == [1, 2, 3, 4, 5, 6], "looking changes nothing"
    registry = registry_of(registered, 2)
    assert registry is not None
    assert all(r.bytes is not None and r.bytes > 100_000 for r in registry_removals(registry, 2)), "code travels too"
    clean(registered, 2)
    assert numbers(store) == [1, 2, 5, 6]
    assert len(models(registered)) == 3
    assert what_goes(registered, 2) == []
    check_whole(registered, store)
    assert (
        sha256_file(fetch_version(f"models:/{NAME}@champion", registered / "x").drafter / "model.safetensors")
        == before
    )
    assert aliases_of(store, NAME) == {"champion": "1", "challenger": "2"}
    assert len(store.client.search_model_versions("name = 'somebody-elses'")) == 3
    assert store.client.get_logged_model(model.model_id).name == "theirs"


def test_what_a_person_or_a_file_speaks_of_stays(registered: Path, store: Store) -> None:
    promote_by_hand(registered, "2", True, print)
    promote(store, NAME, "1")
    promote(store, NAME, "5")
    assert aliases_of(store, NAME) == {"champion": "5", "previous": "1"}
    two, three, four = (f"version {number} of specdec-base (one)" for number in (2, 3, 4))
    assert what_goes(registered, 1) == [three, four]
    assert what_goes(registered, 1, LATER) == [two, three, four]
    write_json(registered / "registry.json", {"model": NAME, "versions": {"one": {"version": "3"}}})
    assert what_goes(registered, 1, LATER) == [two, four]
    drafter = params().drafters["one"].model_dump()
    drafter["training"]["warm_start"] = f"models:/{NAME}/2"
    write_settings(registered, drafters={"one": drafter})
    assert what_goes(registered, 1, LATER) == [four]


def test_an_alias_that_comes_meanwhile_holds_a_version(registered: Path, store: Store) -> None:
    registry = registry_of(registered, 2)
    assert registry is not None
    removal, *_ = registry_removals(registry, 2)
    promote(store, NAME, "2")
    with pytest.raises(Exception, match="version 2 of specdec-base has got an alias meanwhile"):
        removal.remove()
    assert 2 in numbers(store)


def test_two_versions_of_one_model(registered: Path, store: Store) -> None:
    """The model stays as long as one of them does."""
    second = store.client.get_model_version(NAME, "2")
    store.client.create_model_version(NAME, source=second.source, run_id=second.run_id, tags=second.tags)
    clean(registered, 2)
    assert numbers(store) == [1, 5, 6, 7]
    check_whole(registered, store)
    assert second.source.removeprefix("models:/") in models(registered)


def test_what_was_copied_into_another_model_stays(registered: Path, store: Store) -> None:
    """MLflow's way to promote: the copy's source is the version, and its files are the version's."""
    store.client.copy_model_version(f"models:/{NAME}/2", "production")
    assert "version 2 of specdec-base (one)" not in what_goes(registered, 1)
    clean(registered, 1, LATER)
    assert numbers(store) == [1, 2, 5, 6]
    check_whole(registered, store)
    model = store.client.get_model_version(NAME, "2").source.removeprefix("models:/")
    with pytest.raises(TrackingError, match="version 2 of specdec-base is what production/1 was copied from"):
        remove_version(store, NAME, "2", model)


def test_a_model_that_somebody_names_by_its_folder_stays(registered: Path, store: Store) -> None:
    model = store.client.get_model_version(NAME, "2").source.removeprefix("models:/")
    store.client.create_registered_model("production")
    store.client.create_model_version("production", source=str(registered / f"mlartifacts/models/{model}/artifacts"))
    clean(registered, 1, LATER)
    assert numbers(store) == [1, 5, 6]
    assert model in models(registered)


def test_a_model_that_is_registered_meanwhile_stays(registered: Path, store: Store) -> None:
    version = store.client.get_model_version(NAME, "2")
    store.client.delete_model_version(NAME, "2")
    registry = registry_of(registered, 5, LATER)
    assert registry is not None
    (left,) = registry_removals(registry, 5)
    again = store.client.create_model_version(NAME, source=version.source)
    with pytest.raises(TrackingError, match=f"is version {again.version} of specdec-base meanwhile"):
        left.remove()
    assert version.source.removeprefix("models:/") in models(registered)


def test_a_version_deleted_in_mlflow_leaves_its_model_for_a_day(registered: Path, store: Store) -> None:
    model = store.client.get_model_version(NAME, "5").source.removeprefix("models:/")
    store.client.delete_model_version(NAME, "5")
    assert what_goes(registered, 9) == [], "another folder may be about to register it"
    assert what_goes(registered, 9, LATER) == [f"model {model} (one)"]
    clean(registered, 9, LATER)
    assert model not in models(registered)
    check_whole(registered, store)


def test_the_trash_of_our_experiment_alone(registered: Path, store: Store) -> None:
    """A model deleted in MLflow goes with its files; a run a week later; what others deleted stays."""
    model = store.client.get_model_version(NAME, "5").source.removeprefix("models:/")
    store.client.delete_model_version(NAME, "5")
    store.client.delete_logged_model(model)
    other = store.client.create_experiment("others")
    theirs = store.client.create_run(other).info.run_id
    ours = store.client.create_run(store.experiment_id).info.run_id
    for run in (theirs, ours):
        store.client.log_dict(run, {}, "x.json")
        store.client.delete_run(run)
    store.client.delete_experiment(other)
    assert what_goes(registered, 9) == [f"model {model} (one)"]
    backend = store.client._tracking_client.store
    long_ago = f"update runs set deleted_time = 1 where run_uuid in ('{ours}', '{theirs}')"
    with backend.engine.begin() as connection:
        connection.exec_driver_sql(long_ago)
    clean(registered, 9)
    assert model not in models(registered)
    assert not (registered / "mlartifacts" / ours).exists()
    assert store.client.get_run(theirs).info.lifecycle_stage == "deleted"
    assert what_goes(registered, 9) == []
    check_whole(registered, store)


def test_old_runs_lose_their_copy_of_the_drafter(registered: Path, store: Store) -> None:
    runs = [
        run.info.run_id for run in store.client.search_runs([store.experiment_id], "tags.`specdec.drafter` = 'one'")
    ]
    for run in runs:
        copy = registered / f"mlartifacts/{run}/artifacts/drafter"  # as a training logs it
        copy.mkdir(parents=True)
        (copy / "model.safetensors").write_text("weights")
    assert len(runs) == 5
    clean(registered, 2)
    holding = [run for run in runs if (registered / f"mlartifacts/{run}/artifacts/drafter").exists()]
    kept = {store.client.get_model_version(NAME, n).run_id for n in ("1", "5")}
    assert set(holding) == kept | set(runs[:2])
    for run in runs:
        assert store.client.get_run(run).data.metrics, "the figures stay"
        assert (registered / f"mlartifacts/{run}/artifacts/report/report.html").is_file()


KILLER = """
import os, shutil, signal, sys
from pathlib import Path
import specdec.tracking.purge as purge
from specdec.tracking.clean import registry_of, registry_removals
from specdec.tracking.store import connect

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

root, point = Path.cwd(), sys.argv[1]
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

def torn(folder):
    next(Path(folder).rglob("model.safetensors")).unlink()
    die()

match point:
    case "marked": MlflowClient.delete_model_version = die
    case "unregistered": MlflowClient.delete_logged_model = die
    case "torn": purge.shutil.rmtree = torn
    case "emptied": SqlAlchemyStore._hard_delete_logged_model = die
for removal in registry_removals(registry_of(root, 1), 1):
    removal.remove()
"""


@pytest.mark.soak
def test_killed_anywhere_the_registry_is_whole_and_the_next_one_finishes(registered: Path, store: Store) -> None:
    """Each is killed at another point, with what the one before left; then one runs to its end."""
    for point, left in (("marked", [1, 2, 3, 4, 5, 6]), ("unregistered", [1, 3, 4, 5, 6]), ("torn", [1, 4, 5, 6])):
        kill_at(point, registered)
        assert numbers(store) == left
        check_whole(registered, store)
    kill_at("emptied", registered)
    assert numbers(store) == [1, 5, 6]
    clean(registered, 1)
    assert numbers(store) == [1, 5, 6]
    check_whole(registered, store)
    assert len(models(registered)) == 2
    assert what_goes(registered, 1) == []


def kill_at(point: str, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLER, point], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, (point, done.stderr)


def test_without_a_registry(project: Path) -> None:
    registry = registry_of(project, 5)
    assert registry is not None
    assert list(registry_removals(registry, 5)) == []
    (project / "mlflow.db").unlink()
    assert registry_of(project, 5) is None
    assert not (project / "mlflow.db").exists()
