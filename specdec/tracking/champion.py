"""The drafter that the registry promotes now, as a folder to measure new ones against. Looking changes no record."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from specdec.config import load_params
from specdec.config.files import PARAMS
from specdec.errors import TrackingError, TransientError
from specdec.tracking.checkpoints import REGISTRY, fetch_drafter, look_up
from specdec.tracking.lineage import read_json
from specdec.tracking.promotion import CHAMPION, aliases_of
from specdec.tracking.register import model_name
from specdec.tracking.store import connect, if_there, locate


@dataclass(frozen=True)
class PresentChampion:
    """version: None where there is none, or none can be asked for. folder: its checkpoint, where it came. told: why
    there is no folder; empty otherwise."""

    model: str
    version: str | None = None
    folder: Path | None = None
    told: str = ""


def present_champion(model: str, into: Path) -> PresentChampion:
    """The version that the alias `champion` of a registered model names, fetched below `into`.

    Raises nothing of MLflow's: a comparison does without, and tells why. Other versions' folders there are removed.
    """
    version = None
    try:
        version = _version(model)
        if version is None:
            return PresentChampion(model, told=f"no champion yet: no version of {model} is promoted")
        folder = fetch_drafter(f"{REGISTRY}{model}/{version}", into)
    except (TrackingError, TransientError) as error:
        return PresentChampion(model, version, told=f"the champion of {model} was not compared: {error}")
    for other in into.glob("m-*"):
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
    return PresentChampion(model, version, folder)


def champion_to_go_on_from(root: Path) -> tuple[str, str] | None:
    """(`models:/NAME/VERSION`, method) of the champion of the project at `root`; None where there is none for the
    base that lies there."""
    name = load_params(root / PARAMS).register_.model_name or model_name(root)
    version = _version(name)
    if version is None:
        return None
    address = f"{REGISTRY}{name}/{version}"
    _, found = look_up(address)
    identity = read_json(root / "models" / "base" / "specdec.json").get("identity") or {}
    if found.tags.get("specdec.base.weights") != identity.get("weights"):
        return None
    return address, str(found.tags.get("specdec.method"))


def _version(model: str) -> str | None:
    database = locate().database
    if database is not None and not database.exists():  # `connect` would make it
        return None
    store = connect()
    if if_there(store, lambda: store.client.get_registered_model(model)) is None:
        return None
    return aliases_of(store, model).get(CHAMPION)
