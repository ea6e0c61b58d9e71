"""Where a result came from, as tags: the commit, the hashes in `dvc.lock`, the base and the dataset."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from specdec.errors import DataError
from specdec.tracking.values import redact

# Outputs of the pipeline that are under git: their changes are no changes of what was run.
_WRITTEN_BY_STAGES = (":!dvc.lock", ":!metrics", ":!registry.json")
_INPUTS = ("data/", "models/base")


def lineage(root: Path) -> dict[str, str]:
    """Every tag that says what went in, as far as it is there now."""
    return {**git_tags(root), **input_tags(root), **base_tags(root), **dataset_tags(root)}


def git_tags(root: Path) -> dict[str, str]:
    """The commit, or `none` without git (a source tarball), and whether tracked files were changed."""
    # A tarball that was unpacked inside somebody's repository has no commit of its own.
    tracked = _git(root, "ls-files", "--", "dvc.yaml")
    commit = _git(root, "rev-parse", "HEAD") if tracked else ""
    if not commit:
        return {"specdec.git.commit": "none"}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN_BY_STAGES)
    return {
        "specdec.git.commit": commit,
        "specdec.git.dirty": str(bool(changed)).lower(),
        "mlflow.source.git.commit": commit,  # MLflow's page shows this one
    }


def input_tags(root: Path) -> dict[str, str]:
    """`specdec.input.<path>` = DVC's hash, for the data and the base (a drafter's outputs are no inputs)."""
    inputs = {path: digest for path, digest in locked_outputs(root) if path.startswith(_INPUTS)}
    return {f"specdec.input.{path}": digest for path, digest in inputs.items()}


def locked_outputs(root: Path) -> Iterator[tuple[str, str]]:
    """(path, hash) of every output in `dvc.lock`; nothing before the first stage ran."""
    for stage in (read_lock(root).get("stages") or {}).values():
        for out in stage.get("outs") or []:
            if digest := out.get("md5"):
                yield out["path"], digest


def read_lock(root: Path) -> dict[str, Any]:
    """`dvc.lock`; empty before the first stage ran."""
    try:
        lock = yaml.safe_load((root / "dvc.lock").read_text()) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise DataError(f"dvc.lock cannot be read ({' '.join(str(error).split())}): restore it") from None
    if not isinstance(lock, dict):
        raise DataError("dvc.lock cannot be read (it holds no mapping): restore it")
    return lock


def base_tags(root: Path) -> dict[str, str]:
    """The base's source, revision and the hashes of its weights, tokenizer and chat template."""
    base = read_json(root / "models" / "base" / "specdec.json")
    named = {key: base.get(key) for key in ("name", "source", "revision")}
    tags = {**named, **(base.get("identity") or {})}
    return {f"specdec.base.{key}": redact(str(value)) for key, value in tags.items() if value is not None}


def dataset_tags(root: Path) -> dict[str, str]:
    """The dataset's repository, commit, file hash, rows and licence."""
    source = read_json(root / "data" / "raw" / "source.json")
    plain = {key: value for key, value in source.items() if isinstance(value, str | int | float)}
    return {f"specdec.dataset.{key}": redact(str(value)) for key, value in plain.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping that a stage wrote; empty when it is not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): run its stage again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object: run its stage again")
    return content


def _git(root: Path, *command: str) -> str:
    """A git command's output; empty when git or the repository is missing."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
