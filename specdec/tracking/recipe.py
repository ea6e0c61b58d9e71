"""What it takes to make a version again, as files that travel in it: settings, `dvc.lock`, tags, the environment."""

import functools
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import yaml

from specdec.config import Params
from specdec.config.files import PARAMS
from specdec.io import write_json, write_text
from specdec.tracking.lineage import lineage, read_lock
from specdec.tracking.values import without_secrets

LOCK, ENVIRONMENT, ORIGIN = "dvc.lock", "environment.txt", "lineage.json"


def write_recipe(folder: Path, params: Params, root: Path) -> None:
    """`params.yaml`, `dvc.lock` (before the first stage ran there is none), `lineage.json` and `environment.txt`.

    Passwords and keys in them are hidden.
    """
    folder.mkdir()
    _write_yaml(folder / PARAMS, params.model_dump(mode="json", by_alias=True))
    if lock := read_lock(root):
        _write_yaml(folder / LOCK, lock)
    write_json(folder / ORIGIN, lineage(root))
    write_text(folder / ENVIRONMENT, "\n".join(environment()) + "\n")


@functools.cache  # it reads the metadata of everything installed
def environment() -> list[str]:
    """Python, the machine's kind, and every installed distribution as `name==version`, local builds and all."""
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    packages = [f"{name}=={version}" for name, version in sorted(found.items())]
    return [f"# python {platform.python_version()}, {platform.platform()}", *packages]


def _write_yaml(file: Path, content: Any) -> None:
    write_text(file, yaml.safe_dump(without_secrets(content), sort_keys=False, allow_unicode=True, width=110))
