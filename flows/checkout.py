"""Which code and settings this checkout holds: machines that share a run must agree on both."""

from pathlib import Path

from specdec.errors import ConfigError
from specdec.io import sha256_file, sha256_json
from specdec.tracking.lineage import git_tags


def checkout_id(root: Path) -> str:
    """The commit (`none` without git) and a hash of `dvc.yaml` and `params.yaml` as they lie there."""
    files = [sha256_file(root / name) for name in ("dvc.yaml", "params.yaml")]
    return f"{git_tags(root)['specdec.git.commit'][:12]}-{sha256_json({'files': files})[:12]}"


def check_checkout(root: Path, asked: str) -> None:
    """Raises ConfigError where this checkout is not the one that was asked for."""
    if checkout_id(root) != asked:
        raise ConfigError(
            f"{root} holds other code or settings ({checkout_id(root)}) than the flow that asks ({asked}): "
            "bring both to the same commit, with the same params.yaml"
        )
