"""Drafters: one module each, one interface, one checkpoint format. A new method is one line in `METHODS`."""

from pathlib import Path
from typing import Any

from specdec.drafters.interface import (
    PROVENANCE,
    Drafter,
    DrafterLoss,
    Features,
    Proposal,
    check_identity,
    load_checkpoint,
)
from specdec.drafters.medusa import Medusa
from specdec.errors import ModelError
from specdec.targets import Target

METHODS: dict[str, type[Drafter]] = {Medusa.method: Medusa}


def new_drafter(target: Target, settings: Any) -> Drafter:
    """A fresh drafter of `settings.method` for this target."""
    return METHODS[settings.method].from_config(target, settings)


def load_drafter(folder: Path | str, target: Target, force: bool = False) -> Drafter:
    """A trained drafter, on the target's device and in its data type.

    Raises ModelError when the folder is none, or was trained on another base (unless `force`).
    """
    folder = Path(folder)
    config, tensors, provenance = load_checkpoint(folder)
    method = provenance.get("method")
    if method not in METHODS:
        raise ModelError(f"{folder} is a {method!r} drafter: this version knows {', '.join(METHODS)}")
    if not force:
        check_identity(folder, provenance, target)
    drafter = METHODS[method].from_checkpoint(config, tensors)
    return drafter.to(target.device, target.dtype).eval().requires_grad_(False)


__all__ = [
    "METHODS",
    "PROVENANCE",
    "Drafter",
    "DrafterLoss",
    "Features",
    "Medusa",
    "Proposal",
    "load_drafter",
    "new_drafter",
]
