"""Removing from MLflow: a version first, then its model, and the files last.

`mark the model, delete the version, delete the model, remove its files`: killed in between, every version that is
left is whole, and the mark or MLflow's own trash says what is to be finished. `mlflow gc` is not used: it cannot be
told to leave the deleted runs, models and experiments of others.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from specdec.errors import TrackingError
from specdec.room import size_of
from specdec.tracking.checkpoints import REGISTRY
from specdec.tracking.promotion import aliases_of
from specdec.tracking.store import Store, if_there, speaking

_LOGGED = re.compile(r"\bm-[0-9a-f]{32}\b")
UNREGISTERED = "specdec.unregistered"  # of a model whose version is being removed: NAME/VERSION


def remove_version(store: Store, name: str, number: str, model: str) -> None:
    if number in aliases_of(store, name).values():
        raise TrackingError(f"version {number} of {name} has got an alias meanwhile")
    every = every_version(store)
    copies = [f"{n}/{v.version}" for (n, _), v in every.items() if str(v.source) == f"{REGISTRY}{name}/{number}"]
    if copies:
        raise TrackingError(f"version {number} of {name} is what {copies[0]} was copied from")
    users = {key for key, version in every.items() if model in models_behind(version, every)}
    alone = users == {(name, number)}
    there = if_there(store, lambda: store.client.get_logged_model(model)) is not None
    with speaking(store.location):
        if alone and there:
            store.client.set_logged_model_tags(model, {UNREGISTERED: f"{name}/{number}"})
        store.client.delete_model_version(name, number)
    if alone and there:
        remove_model(store, model)


def remove_model(store: Store, model: str) -> None:
    every = every_version(store)  # looked at again: another folder may have registered it meanwhile
    for (name, number), version in every.items():
        if model in models_behind(version, every):
            raise TrackingError(f"model {model} is version {number} of {name} meanwhile")
    with speaking(store.location):
        store.client.delete_logged_model(model)
    purge_model(store, model)


def purge_model(store: Store, model: str) -> None:
    """Files first: while MLflow's trash names the model, the next clean finds it."""
    backend = database(store)
    if backend is None:  # a server's files are its keeper's: `mlflow gc` there
        return
    with speaking(store.location):
        _remove_files(backend.get_logged_model(model, allow_deleted=True).artifact_location, model)
        backend._hard_delete_logged_model(model)


def purge_run(store: Store, run: str) -> None:
    backend = database(store)
    assert backend is not None
    with speaking(store.location):
        found = backend.get_run(run)
        if found.info.lifecycle_stage != "deleted":
            raise TrackingError(f"run {run} was restored meanwhile")
        _remove_files(found.info.artifact_uri, run)
        backend._hard_delete_run(run)


def _remove_files(uri: str, owner: str) -> None:
    """MLflow's layout: `.../OWNER/artifacts`. Anything else is not ours to remove."""
    folder = local_folder(uri)
    if folder is None or (folder.name, folder.parent.name) != ("artifacts", owner):
        raise TrackingError(f"the files of {owner} are in {uri}: remove them there")
    if folder.parent.exists():
        shutil.rmtree(folder.parent)


def database(store: Store) -> Any | None:
    """The database behind the client, as `mlflow gc` uses it; None for a server or another database."""
    return None if store.location.database is None else store.client._tracking_client.store


def model_size(store: Store, model: str) -> int | None:
    """Bytes; None where nobody here can say."""
    found = if_there(store, lambda: store.client.get_logged_model(model))
    if found is None:
        return 0
    folder = local_folder(found.artifact_location)
    return None if folder is None else size_of(folder)


def every_version(store: Store) -> dict[tuple[str, str], Any]:
    """{(registered model, version): MLflow's}, of every registered model."""
    with speaking(store.location):
        return {(v.name, str(v.version)): v for v in pages(store.client.search_model_versions)}


def models_behind(version: Any, every: dict[tuple[str, str], Any]) -> set[str]:
    """The logged models that a version's files are in, by whatever its source names them: themselves, a place below
    their artifacts, or another version (MLflow's `copy_model_version`)."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while version is not None and (version.name, str(version.version)) not in seen:
        seen.add((version.name, str(version.version)))
        found |= {*_LOGGED.findall(str(version.source)), *([str(version.model_id)] if version.model_id else [])}
        kind, _, named = str(version.source).partition(REGISTRY)
        name, _, number = named.rpartition("/")
        version = None if kind else every.get((name, number))
    return found


def local_folder(uri: str) -> Path | None:
    """The folder of a `file:` URI or a plain path."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.path.startswith("/") else None


def pages(search: Callable[..., Any], *given: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*given, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
