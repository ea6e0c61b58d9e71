"""Drafters out of the registry, as folders."""

import re
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.errors import TrackingError
from specdec.io import replacing_dir
from specdec.tracking.model import CHECKPOINT
from specdec.tracking.store import Store, connect, speaking

REGISTRY = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")
_MODEL = re.compile(r"models:/(?P<id>m-\w+)")


def drafter_folder(given: str, into: Path) -> Path:
    """Of a folder itself, or of an address in the registry: see `fetch_drafter`."""
    return fetch_drafter(given, into) if given.startswith(REGISTRY) else Path(given)


def exact_address(given: str) -> str:
    """`models:/NAME/VERSION` of `models:/NAME@ALIAS`, which may soon be another one; anything else as it is.

    Raises TrackingError as `fetch_drafter` does.
    """
    if not given.startswith(REGISTRY):
        return given
    _, version = look_up(given)
    return f"{REGISTRY}{version.name}/{version.version}"


def fetch_drafter(address: str, into: Path) -> Path:
    """The checkpoint of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in a folder of its own below `into`.

    Fetched once. Raises TrackingError for an address that is no such thing, or that the registry does not have.
    """
    store, version = look_up(address)
    folder = into / model_id_of(version, address)
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(into / f"{folder.name}.lock"):  # two trainings may begin with the same one
        if not all((folder / name).is_file() for name in CHECKPOINT):
            with replacing_dir(folder) as aside:
                _download(store, f"{REGISTRY}{version.name}/{version.version}/artifacts/drafter", aside, address)
    return folder


def model_id_of(version: Any, address: str) -> str:
    """The logged model behind a version. Raises TrackingError for a version of someone else's."""
    model = _MODEL.fullmatch(str(version.source))
    if not model:
        raise TrackingError(f"{address}: version {version.version} was not registered by specdec ({version.source})")
    return model["id"]


def look_up(address: str) -> tuple[Store, Any]:
    """The registry, and its version of that address. Raises TrackingError as `fetch_drafter` does."""
    named = _ADDRESS.fullmatch(address)
    if not named:
        raise TrackingError(f"{address}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    store = connect()
    return store, _version(store, **named.groupdict())


def _version(store: Store, name: str, version: str | None, alias: str | None) -> Any:
    with speaking(store.location):
        if alias:
            return store.client.get_model_version_by_alias(name, alias)
        return store.client.get_model_version(name, version)


def _download(store: Store, uri: str, folder: Path, address: str) -> None:
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="mlflow-", dir=folder) as aside:
        with speaking(store.location):
            found = Path(download_artifacts(uri, dst_path=aside, tracking_uri=store.location.uri))
        missing = [name for name in CHECKPOINT if not (found / name).is_file()]
        if missing:
            raise TrackingError(f"{address} has no {', '.join(missing)}: register the drafter again")
        for file in found.iterdir():
            file.rename(folder / file.name)
