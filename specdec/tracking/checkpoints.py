"""Drafters out of the registry, as folders."""

import re
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.errors import TrackingError
from specdec.io import replacing_dir
from specdec.tracking.model import CHECKPOINT, logged_model
from specdec.tracking.store import Store, connect, speaking
from specdec.tracking.stored_files import REFERENCE, damaged, download, is_whole, list_files, missing_of

REGISTRY = "models:/"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


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

    Fetched once. Raises TrackingError for an address that is no such thing, for what the registry does not have, and
    for what is damaged there.
    """
    store, version = look_up(address)
    folder = into / model_id_of(version, address)
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(into / f"{folder.name}.lock"):  # two trainings may begin with the same one
        if not all((folder / name).is_file() for name in CHECKPOINT):
            with replacing_dir(folder) as aside:
                _fetch(store, version, folder.name, aside)
    return folder


def _fetch(store: Store, version: Any, model_id: str, folder: Path) -> None:
    """Its checkpoint in every byte as it was registered, or an error."""
    exact = f"{REGISTRY}{version.name}/{version.version}"
    listed = list_files(store, model_id)
    if missing := missing_of(listed):
        raise TrackingError(f"{exact} has no {', '.join(missing)}: register the drafter again")
    parts = {name: size for name, size in listed.items() if name == REFERENCE or name.startswith("drafter/")}
    with tempfile.TemporaryDirectory(prefix="mlflow-", dir=folder) as aside:
        download(store, exact, parts, Path(aside))
        if not is_whole(Path(aside), parts, version):
            raise damaged(store, exact)
        for file in (Path(aside) / "drafter").iterdir():
            file.rename(folder / file.name)


def model_id_of(version: Any, address: str) -> str:
    """The logged model behind a version. Raises TrackingError for a version of someone else's."""
    model_id = logged_model(version)
    if model_id is None:
        raise TrackingError(f"{address}: version {version.version} was not registered by specdec ({version.source})")
    return model_id


def look_up(address: str) -> tuple[Store, Any]:
    """The registry, and its version of that address. Raises TrackingError as `fetch_drafter` does."""
    named = _ADDRESS.fullmatch(address)
    if not named:
        raise TrackingError(f"{address}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    store = connect()
    version = _version(store, **named.groupdict())
    if version.name != named["name"] or not str(version.version).isdigit():  # they become names of folders
        raise TrackingError(f"{address}: {store.location.shown} answers with {version.name!r}, {version.version!r}")
    return store, version


def _version(store: Store, name: str, version: str | None, alias: str | None) -> Any:
    with speaking(store.location):
        if alias:
            return store.client.get_model_version_by_alias(name, alias)
        return store.client.get_model_version(name, version)
