"""A registered drafter comes back as the folder it was."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from specdec.errors import TrackingError
from specdec.tracking.checkpoints import exact_address, fetch_drafter
from specdec.tracking.register import register
from specdec.tracking.store import Store
from specdec.tracking.warm_start import find_warm_start
from tests.tracking.example import params

NAME = "specdec-base"


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_by_version_and_by_alias(project: Path, store: Store) -> None:
    receipt = register(params(), lambda _line: None)
    for name, version in receipt["versions"].items():
        folder = fetch_drafter(f"models:/{NAME}/{version['version']}", project / "fetched")
        assert files(folder) == files(project / "models/drafters" / name)
        (alias,) = version["aliases"]
        assert fetch_drafter(f"models:/{NAME}@{alias}", project / "fetched") == folder
    folders = [path for path in (project / "fetched").iterdir() if path.is_dir()]
    assert len(folders) == 2, "and nothing else of what was fetched"


def test_an_alias_is_looked_up_once_and_kept_as_a_version(project: Path, store: Store) -> None:
    """Also when it moves behind our back: between looking up and fetching, another process promotes another one."""
    register(params(), lambda _line: None)
    store.client.set_registered_model_alias(NAME, "start", "1")
    assert exact_address(f"models:/{NAME}/2") == f"models:/{NAME}/2"
    assert exact_address("some/folder") == "some/folder"
    start = find_warm_start(f"models:/{NAME}@start", project / "fetched")
    store.client.set_registered_model_alias(NAME, "start", "2")
    weights = hashlib.sha256((start.folder / "model.safetensors").read_bytes()).hexdigest()
    assert start.record() == {"drafter": f"models:/{NAME}/1", "sha256": weights}
    assert find_warm_start(f"models:/{NAME}@start", project / "fetched").drafter == f"models:/{NAME}/2"
    with pytest.raises(TrackingError, match="alias nobody"):
        exact_address(f"models:/{NAME}@nobody")


def test_the_fetched_drafter_is_of_the_version_that_was_looked_up(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(params(), lambda _line: None)
    store.client.set_registered_model_alias(NAME, "start", "1")

    def moving(given: str) -> str:
        exact = exact_address(given)
        store.client.set_registered_model_alias(NAME, "start", "2")
        return exact

    monkeypatch.setattr("specdec.tracking.warm_start.exact_address", moving)
    found = find_warm_start(f"models:/{NAME}@start", project / "fetched")
    assert found.folder == fetch_drafter(f"models:/{NAME}/1", project / "fetched")
    assert found.folder != fetch_drafter(f"models:/{NAME}/2", project / "fetched")


def test_what_is_there_is_not_fetched_again(project: Path, store: Store) -> None:
    register(params(), lambda _line: None)
    folder = fetch_drafter(f"models:/{NAME}@champion", project / "fetched")
    (folder / "model.safetensors").write_text("mine")
    again = fetch_drafter(f"models:/{NAME}@champion", project / "fetched")
    assert (again / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize("address", ["models:/", "models:/a/b", "models:/a@b/c", "runs:/x/y", "models:/a"])
def test_no_address(address: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="write models:/NAME@ALIAS or models:/NAME/VERSION"):
        fetch_drafter(address, tmp_path)


def test_what_the_registry_does_not_have(project: Path, store: Store) -> None:
    register(params(), lambda _line: None)
    refused = {f"{NAME}@nobody": "alias nobody", f"{NAME}/99": "version=99", "other/1": "name=other"}
    for address, told in refused.items():
        with pytest.raises(TrackingError, match=told):
            fetch_drafter(f"models:/{address}", project / "fetched")
    assert not (project / "fetched").exists()


def test_a_version_of_someone_elses(project: Path, store: Store) -> None:
    store.client.create_registered_model("other")
    store.client.create_model_version("other", str(project / "models/base"))
    with pytest.raises(TrackingError, match="was not registered by specdec"):
        fetch_drafter("models:/other/1", project / "fetched")


def test_several_may_fetch_the_same_at_once(project: Path, store: Store) -> None:
    register(params(), lambda _line: None)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch_drafter(f"models:/{NAME}/1", project / "fetched"), range(4)))
    assert len(set(folders)) == 1
    assert (folders[0] / "model.safetensors").is_file()


def test_one_that_lacks_its_weights_is_refused_and_not_kept(project: Path, store: Store) -> None:
    register(params(), lambda _line: None)
    source = store.client.get_model_version(NAME, "1").source.removeprefix("models:/")
    (weights,) = (project / "mlartifacts").rglob(f"{source}/artifacts/artifacts/drafter/model.safetensors")
    weights.rename(weights.with_name("elsewhere"))
    for _ in range(2):
        with pytest.raises(TrackingError, match=r"models:/specdec-base/1 has no model.safetensors: register"):
            fetch_drafter(f"models:/{NAME}/1", project / "fetched")
    weights.with_name("elsewhere").rename(weights)
    assert (fetch_drafter(f"models:/{NAME}/1", project / "fetched") / "model.safetensors").is_file()
