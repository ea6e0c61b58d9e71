"""A registered version, fetched to be served: its drafter, its base where that is bundled, its serving settings."""

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.config import load_params
from specdec.config.files import PARAMS
from specdec.errors import TrackingError
from specdec.io import replacing_dir
from specdec.tracking.checkpoints import REGISTRY, look_up, model_id_of
from specdec.tracking.lineage import read_json
from specdec.tracking.model import CHECKPOINT, IDENTITY, SERVING, drafter_identity
from specdec.tracking.promotion import aliases_of
from specdec.tracking.register import model_name
from specdec.tracking.store import Store, connect, locate, speaking

_REFERENCE = "base.json"  # which base it is, of a version that carries none too
_SETTINGS = (f"engine/{SERVING}", f"evaluation/{SERVING}")


@dataclass(frozen=True)
class FetchedVersion:
    """A version as a folder. address: `models:/NAME/VERSION`. base: None where it is not bundled.

    measured, predicted: its serving settings, of a benchmark in vLLM and of its evaluation; they may not be there.
    """

    address: str
    drafter: Path
    base: Path | None
    measured: Path
    predicted: Path


def version_address(given: str, root: Path) -> str:
    """What people call a version, as an address: a number or an alias is one of this project's registered model.

    Raises ConfigError where the project has no settings.
    """
    if given.startswith(REGISTRY):
        return given
    name = load_params(root / PARAMS).register_.model_name or model_name(root)
    return f"{REGISTRY}{name}/{given}" if given.isdigit() else f"{REGISTRY}{name}@{given}"


def fetch_version(address: str, into: Path) -> FetchedVersion:
    """The version in `into/NAME-VERSION`: what is there and whole is used again; its settings are always the newest.

    Raises TrackingError for an address that is none or that the registry does not have, and where what it has is
    damaged; TransientError where it does not answer.
    """
    location = locate()
    if location.database is not None and not location.database.exists():  # `connect` would make it
        raise TrackingError(
            f"{address}: there is no registry yet ({location.shown}): run the pipeline, set MLFLOW_TRACKING_URI to "
            "the MLflow that has it, or name a drafter's folder"
        )
    store, version = _look_up(address)
    exact = f"{REGISTRY}{version.name}/{version.version}"
    listed = _listed(store, model_id_of(version, address))
    folder = into / f"{version.name}-{version.version}"
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(into / f"{folder.name}.lock"):
        parts = {name: size for name, size in listed.items() if name not in _SETTINGS}
        if not _whole(folder, parts, version):
            with replacing_dir(folder) as aside:
                _download(store, exact, _tops(parts), aside)
                if not _whole(aside, parts, version):
                    raise TrackingError(f"{exact} is damaged in {store.location.shown}: register the drafter again")
        with replacing_dir(folder / "settings") as aside:
            _download(store, exact, [name for name in _SETTINGS if name in listed], aside)
    base, settings = folder / "base", [folder / "settings" / name for name in _SETTINGS]
    return FetchedVersion(exact, folder / "drafter", base if base.is_dir() else None, *settings)


def _look_up(address: str) -> tuple[Store, Any]:
    """As `look_up`; where the registry has no such version, the error says which ones it has."""
    try:
        return look_up(address)
    except TrackingError as error:
        named = re.match(rf"{REGISTRY}([^/@]+)[/@]", address)
        if named is None or "refused: " not in str(error):
            raise
        raise TrackingError(f"{address} is not in the registry: {_there(connect(), named[1])}") from None


def _there(store: Store, name: str) -> str:
    """Which versions a registered model has, for an error."""
    with speaking(store.location):
        known = [m.name for m in store.client.search_registered_models()]
        if name not in known:
            return f"{store.location.shown} has {', '.join(known) or 'no registered model'}"
        versions = sorted(int(v.version) for v in store.client.search_model_versions(f"name = '{name}'"))
    aliases = [f"{alias} (version {version})" for alias, version in sorted(aliases_of(store, name).items())]
    numbers = ", ".join(map(str, versions)) or "none"
    return f"{name} has the aliases {', '.join(aliases) or 'none'} and the versions {numbers}"


def _listed(store: Store, model_id: str) -> dict[str, int]:
    """{path below the artifacts: size} of what serving needs."""
    with speaking(store.location):
        found = _files(store, model_id, "artifacts")
    found = {name.removeprefix("artifacts/"): size for name, size in found.items()}
    return {
        name: size
        for name, size in found.items()
        if name in (_REFERENCE, *_SETTINGS) or name.startswith(("drafter/", "base/"))
    }


def _files(store: Store, model_id: str, path: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in store.client.list_logged_model_artifacts(model_id, path):
        found |= _files(store, model_id, entry.path) if entry.is_dir else {str(entry.path): int(entry.file_size)}
    return found


def _tops(files: Iterable[str]) -> list[str]:
    """The folders, and the files beside them."""
    return sorted({name.partition("/")[0] for name in files})


def _whole(folder: Path, parts: dict[str, int], version: Any) -> bool:
    """Whether every file is there in its size, and the drafter in every byte."""
    if not {f"drafter/{name}" for name in CHECKPOINT} <= parts.keys():
        return False
    for name, size in parts.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return False
    base = read_json(folder / _REFERENCE).get("identity")
    return version.tags.get(IDENTITY) in (None, drafter_identity(folder / "drafter", base))


def _download(store: Store, exact: str, names: Iterable[str], folder: Path) -> None:
    """`names` below the version's artifacts, each to its own place in `folder`."""
    from mlflow.artifacts import download_artifacts

    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mlflow-", dir=folder) as aside:
            with speaking(store.location):
                uri = f"{exact}/artifacts/{name}"
                found = Path(download_artifacts(uri, dst_path=aside, tracking_uri=store.location.uri))
            found.rename(target)
