"""A registered version comes as a folder that can be served: whole, checked, with its newest settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import ConfigError, TrackingError
from specdec.tracking.fetch_version import FetchedVersion, fetch_version, version_address
from specdec.tracking.register import register
from specdec.tracking.store import Store
from tests.tracking.example import params, register_settings, write_drafter, write_json, write_settings

NAME = "specdec-base"
PREDICTED = {"1": None, "4": {"method": "medusa", "model": "models/drafters/one", "num_speculative_tokens": 1}}
MEASURED = {"1": {"method": "medusa", "model": "models/drafters/one", "num_speculative_tokens": 1}}


def silent(_line: str) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def settings_of(version: FetchedVersion) -> list[Any]:
    """Measured and predicted; None for a file that is not there."""
    found = (version.measured, version.predicted)
    return [json.loads(file.read_text()) if file.exists() else None for file in found]


def test_what_people_call_a_version(project: Path) -> None:
    assert version_address("models:/x/3", project) == "models:/x/3"
    assert version_address("3", project) == f"models:/{NAME}/3"
    assert version_address("champion", project) == f"models:/{NAME}@champion"
    write_settings(project, register=register_settings(model_name="ours"))
    assert version_address("champion", project) == "models:/ours@champion"
    with pytest.raises(ConfigError, match=r"params\.yaml is not there"):
        version_address("champion", project / "models")


@pytest.mark.parametrize("bundled", [True, False])
def test_a_version_with_its_settings(project: Path, store: Store, bundled: bool) -> None:
    write_json(project / "reports/one/speculative_config.json", PREDICTED)
    write_json(project / "engine/one/speculative_config.json", MEASURED)
    register(params(register=register_settings(bundle_base=bundled)), silent)
    got = fetch_version(f"models:/{NAME}@challenger", project / "into")
    assert got.address == f"models:/{NAME}/2", "two: no file of settings"
    assert settings_of(got) == [None, None]
    got = fetch_version(f"models:/{NAME}/1", project / "into")
    assert got.drafter == project / f"into/{NAME}-1/drafter"
    assert files(got.drafter) == files(project / "models/drafters/one")
    assert settings_of(got) == [MEASURED, PREDICTED]
    assert (got.base is not None) == bundled
    if got.base:
        assert files(got.base) == files(project / "models/base")
    left = {p.name for p in (project / "into").iterdir()}
    assert left == {f"{NAME}-1", f"{NAME}-2", f"{NAME}-1.lock", f"{NAME}-2.lock"}


def test_settings_of_a_later_benchmark_reach_the_same_version(project: Path, store: Store) -> None:
    write_json(project / "reports/one/speculative_config.json", PREDICTED)
    first = register(params(), silent)["versions"]["one"]
    into = project / "into"
    assert settings_of(fetch_version(f"models:/{NAME}/1", into)) == [None, PREDICTED]
    later = {"1": None}
    write_json(project / "reports/one/speculative_config.json", later)
    write_json(project / "engine/one/speculative_config.json", MEASURED)
    again = register(params(), silent)["versions"]["one"]
    assert (again["version"], again["content"]) == (first["version"], first["content"])
    assert settings_of(fetch_version(f"models:/{NAME}/1", into)) == [MEASURED, later]
    assert files(into / f"{NAME}-1/drafter") == files(project / "models/drafters/one")


def test_what_is_whole_is_used_again_and_what_is_not_is_fetched(project: Path, store: Store) -> None:
    register(params(register=register_settings(bundle_base=True)), silent)
    got = fetch_version(f"models:/{NAME}/1", project / "into")
    before = got.drafter.stat().st_ino
    assert fetch_version(f"models:/{NAME}/1", project / "into").drafter.stat().st_ino == before
    weights = got.drafter / "model.safetensors"
    damage = bytearray(weights.read_bytes())
    damage[-1] ^= 1
    for break_it in (
        lambda: weights.write_bytes(damage),  # as long as before
        weights.unlink,
        lambda: (project / f"into/{NAME}-1/base/config.json").write_text("{}"),
    ):
        break_it()
        again = fetch_version(f"models:/{NAME}/1", project / "into")
        assert files(again.drafter) == files(project / "models/drafters/one")
        assert again.base is not None
        assert files(again.base) == files(project / "models/base")


def test_a_version_that_is_damaged_in_the_store(project: Path, store: Store) -> None:
    register(params(), silent)
    one = (project / "models/drafters/one/model.safetensors").read_bytes()
    (stored,) = (f for f in project.glob("mlartifacts/**/drafter/model.safetensors") if f.read_bytes() == one)
    damage = bytearray(stored.read_bytes())
    damage[-1] ^= 1
    stored.write_bytes(damage)
    with pytest.raises(TrackingError, match=f"models:/{NAME}/1 is damaged in .*: register the drafter again"):
        fetch_version(f"models:/{NAME}/1", project / "into")
    assert [p.name for p in (project / "into").iterdir()] == [f"{NAME}-1.lock"], "nothing half-fetched"


def test_what_the_registry_does_not_have(project: Path, store: Store) -> None:
    write_drafter(project, "two", weights="two")
    refused = "other@champion is not in the registry: sqlite.*/mlflow.db has no registered model"
    with pytest.raises(TrackingError, match=refused):
        fetch_version("models:/other@champion", project / "into")
    register(params(), silent)
    there = (
        rf"{NAME} has the aliases challenger \(version 2\), champion \(version 1\) and the versions 1, 2: name one"
    )
    for address in (f"models:/{NAME}@nobody", f"models:/{NAME}/99"):
        with pytest.raises(TrackingError, match=f"{address} is not in the registry: {there}"):
            fetch_version(address, project / "into")
    with pytest.raises(TrackingError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        fetch_version("models:/other", project / "into")


def test_no_registry_yet(tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TrackingError, match=r"there is no registry yet \(sqlite.*run the pipeline.*a drafter's folder"
    ):
        fetch_version("models:/x@champion", tmp_path / "into")
    assert list(tmp_path.iterdir()) == []
