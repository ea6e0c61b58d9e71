"""The present champion out of a real registry; where there is none, that is told and nothing fails."""

from pathlib import Path

import pytest

from specdec.tracking.champion import PresentChampion, champion_to_go_on_from, present_champion
from specdec.tracking.register import register
from specdec.tracking.store import Store
from tests.tracking.example import IDENTITY, params, write_drafter, write_figures, write_json

NAME = "specdec-base"


def silent(_line: str) -> None:
    pass


def test_the_promoted_version_as_a_folder(project: Path, store: Store) -> None:
    write_figures(project, "two", speedup=1.5)
    register(params(), silent)
    found = present_champion(NAME, project / "fetched")
    assert (found.model, found.version, found.told) == (NAME, "2", "")
    assert found.folder is not None
    for name in ("config.json", "model.safetensors", "specdec.json"):
        assert (found.folder / name).read_bytes() == (project / "models/drafters/two" / name).read_bytes()


def test_a_moved_alias_is_followed_and_the_old_folder_goes(project: Path, store: Store) -> None:
    register(params(), silent)
    first = present_champion(NAME, project / "fetched").folder
    write_drafter(project, "two", weights="better")
    write_figures(project, "two", speedup=1.9)
    register(params(), silent)
    found = present_champion(NAME, project / "fetched")
    assert found.version == "3"
    assert found.folder is not None
    better = (project / "models/drafters/two/model.safetensors").read_bytes()
    assert (found.folder / "model.safetensors").read_bytes() == better
    assert first is not None
    assert not first.exists()
    assert present_champion(NAME, project / "fetched") == found


def test_a_torn_copy_is_fetched_again(project: Path, store: Store) -> None:
    register(params(), silent)
    folder = present_champion(NAME, project / "fetched").folder
    assert folder is not None
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    assert present_champion(NAME, project / "fetched").folder == folder
    assert (folder / "config.json").read_bytes() == content


def test_no_model_and_no_champion_yet(project: Path, store: Store) -> None:
    none = PresentChampion(NAME, told=f"no champion yet: no version of {NAME} is promoted")
    assert present_champion(NAME, project / "fetched") == none
    write_figures(project, "one", lossless=False)
    write_figures(project, "two", lossless=False)
    register(params(), silent)
    assert present_champion(NAME, project / "fetched") == none


def test_looking_makes_no_database(project: Path) -> None:
    (project / "mlflow.db").unlink()
    assert present_champion(NAME, project / "fetched").told.startswith("no champion yet")
    assert not list(project.glob("mlflow*"))


def test_an_mlflow_that_is_away(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = present_champion(NAME, project / "fetched")
    assert (found.version, found.folder) == (None, None)
    assert found.told.startswith(f"the champion of {NAME} was not compared: MLflow at http://127.0.0.1:9 does not")


def test_one_whose_weights_are_gone(project: Path, store: Store) -> None:
    register(params(), silent)
    for weights in (project / "mlartifacts").rglob("artifacts/drafter/model.safetensors"):
        weights.unlink()
    found = present_champion(NAME, project / "fetched")
    assert (found.version, found.folder) == ("1", None)
    assert "has no model.safetensors" in found.told


def test_a_training_goes_on_from_the_champion_of_this_base_alone(project: Path, store: Store) -> None:
    assert champion_to_go_on_from(project) is None
    write_figures(project, "two", speedup=1.5)
    register(params(), silent)
    assert champion_to_go_on_from(project) == (f"models:/{NAME}/2", "medusa")
    base = {"source": "embedded", "name": "tiny/base", "identity": IDENTITY | {"weights": "f" * 64}}
    write_json(project / "models/base/specdec.json", base)
    assert champion_to_go_on_from(project) is None
