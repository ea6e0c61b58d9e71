"""A registered version, fetched to be served: its drafter, its base where that is bundled, its serving settings."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.config import load_params
from specdec.config.files import PARAMS
from specdec.errors import TrackingError
from specdec.io import replacing_dir
from specdec.tracking.checkpoints import REGISTRY, look_up, model_id_of
from specdec.tracking.promotion import aliases_of
from specdec.tracking.register import model_name
from specdec.tracking.store import Store, connect, locate, speaking
from specdec.tracking.stored_files import SETTINGS, damaged, download, is_whole, list_files, missing_of


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
    listed = list_files(store, model_id_of(version, address))
    if missing := missing_of(listed):
        raise TrackingError(
            f"{exact} has no {', '.join(missing)} in {store.location.shown}: register the drafter again"
        )
    folder = into / f"{version.name}-{version.version}"
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(into / f"{folder.name}.lock"):
        parts = {name: size for name, size in listed.items() if name not in SETTINGS}
        if not is_whole(folder, parts, version):
            with replacing_dir(folder) as aside:
                download(store, exact, parts, aside)
                if not is_whole(aside, parts, version):
                    raise damaged(store, exact)
        with replacing_dir(folder / "settings") as aside:
            download(store, exact, [name for name in SETTINGS if name in listed], aside)
    base, settings = folder / "base", [folder / "settings" / name for name in SETTINGS]
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
    there = f"{name} has the aliases {', '.join(aliases) or 'none'} and the versions {numbers}"
    return f"{there}: name one by its number, or make it the champion (`specdec promote N`)" if versions else there
