"""The files of a registered version that are fetched, and the proof that they arrived as they were registered.

What lies in a registry is data of others. Only files that serving needs are asked for, by name; no code and no pickle
is among them, and nothing of MLflow's that would load a model is called.
"""

import itertools
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from specdec.errors import TrackingError
from specdec.targets.fetch import PATTERNS
from specdec.targets.identity import RECORD
from specdec.tracking.lineage import read_json
from specdec.tracking.model import CHECKPOINT, IDENTITY, SERVING, drafter_identity
from specdec.tracking.store import Store, speaking

REFERENCE = "base.json"  # which base it is, also of a version that carries none
SETTINGS = (f"engine/{SERVING}", f"evaluation/{SERVING}")
_FOLDERS = ("drafter", "base", "engine", "evaluation")
_NEEDED = {"drafter": [*CHECKPOINT, RECORD], "base": PATTERNS}


def list_files(store: Store, model_id: str) -> dict[str, int]:
    """{path below the artifacts: size in bytes} of what serving needs. Whatever else lies there stays there."""
    with speaking(store.location):
        top = store.client.list_logged_model_artifacts(model_id, "artifacts")
        folders = [store.client.list_logged_model_artifacts(model_id, f"artifacts/{name}") for name in _FOLDERS]
    found = {str(f.path).removeprefix("artifacts/"): f for f in itertools.chain(top, *folders) if not f.is_dir}
    return {name: int(file.file_size or 0) for name, file in found.items() if _is_needed(name)}


def missing_of(files: Iterable[str]) -> list[str]:
    """The files of a drafter that are not among them."""
    there = set(files)
    return [name for name in CHECKPOINT if f"drafter/{name}" not in there]


def is_whole(folder: Path, files: dict[str, int], version: Any) -> bool:
    """Whether every file is there in its size, and the drafter in every byte."""
    for name, size in files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return False
    base = read_json(folder / REFERENCE).get("identity")
    return bool(version.tags.get(IDENTITY) == drafter_identity(folder / "drafter", base))


def download(store: Store, exact: str, names: Iterable[str], folder: Path) -> None:
    """`names` below the artifacts of `models:/NAME/VERSION`, each to its own place in `folder`."""
    from mlflow.artifacts import download_artifacts

    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mlflow-", dir=folder) as aside:
            with speaking(store.location):
                uri = f"{exact}/artifacts/{name}"
                found = Path(download_artifacts(uri, dst_path=aside, tracking_uri=store.location.uri))
            if not found.is_file():
                raise damaged(store, exact)
            found.rename(target)


def damaged(store: Store, exact: str) -> TrackingError:
    """For a version whose files are not those that its tags name."""
    return TrackingError(f"{exact} is damaged in {store.location.shown}: register the drafter again")


def _is_needed(name: str) -> bool:
    """A file directly in one of the folders: a name with `..` or a further folder is none."""
    folder, _, file = name.rpartition("/")
    return name in (REFERENCE, *SETTINGS) or any(fnmatchcase(file, pattern) for pattern in _NEEDED.get(folder, ()))
