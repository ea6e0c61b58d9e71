"""A registered drafter comes back as the folder it was."""

from pathlib import Path

import pytest

from specdec.errors import TrackingError
from specdec.tracking.checkpoints import fetch_drafter
from specdec.tracking.register import register
from specdec.tracking.store import Store
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
    assert len(list((project / "fetched").iterdir())) == 2


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
    for address in (f"models:/{NAME}@nobody", f"models:/{NAME}/99", "models:/other/1"):
        with pytest.raises(TrackingError, match=r"nobody|99|other"):
            fetch_drafter(address, project / "fetched")
    assert not (project / "fetched").exists()


def test_a_version_of_someone_elses(project: Path, store: Store) -> None:
    store.client.create_registered_model("other")
    store.client.create_model_version("other", str(project / "models/base"))
    with pytest.raises(TrackingError, match="was not registered by specdec"):
        fetch_drafter("models:/other/1", project / "fetched")
