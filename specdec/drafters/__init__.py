"""Drafters: one module each, one interface, one checkpoint format. A new method is one line in `METHODS`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from specdec.config import METHOD_SECTIONS, validated
from specdec.drafters.eagle import Eagle
from specdec.drafters.eagle3 import Eagle3
from specdec.drafters.interface import (
    PROVENANCE,
    Drafter,
    DrafterLoss,
    DraftState,
    Features,
    Proposer,
    answer_counts,
    check_identity,
    load_checkpoint,
)
from specdec.drafters.medusa import Medusa
from specdec.drafters.sampling import Draw, Sampling
from specdec.drafters.trees import Proposal, Shape, StaticTree, Tree
from specdec.errors import ModelError
from specdec.targets import Target

METHODS: dict[str, type[Drafter]] = {method.method: method for method in (Medusa, Eagle, Eagle3)}


def new_drafter(target: Target, settings: Any, token_counts: Tensor | None = None) -> Drafter:
    """A fresh drafter of `settings.method` for this target; token_counts[V] for a draft vocabulary."""
    drafter = METHODS[settings.method].from_config(target, settings, token_counts)
    drafter.trained_as = settings.model_dump(include=set(METHOD_SECTIONS[settings.method].model_fields))
    return drafter


def load_drafter(folder: Path | str, target: Target, force: bool = False, trainable: bool = False) -> Drafter:
    """A trained drafter, on the target's device and in its data type; `trainable`: in float32, to be trained further.

    Raises ModelError when the folder is none, or was trained on another base (unless `force`).
    """
    folder = Path(folder)
    config, tensors, provenance = load_checkpoint(folder)
    method = provenance.get("method")
    if method is None:
        raise ModelError(f"{folder} holds no drafter: its {PROVENANCE} names no method")
    if method not in METHODS:
        raise ModelError(f"{folder} is a {method!r} drafter: this version knows {', '.join(METHODS)}")
    if not force:
        check_identity(folder, provenance, target)
    trained_as = provenance.get("trained_as")
    settings = None
    if trainable and trained_as:
        settings = validated(METHOD_SECTIONS[method], trained_as, f"{folder}/{PROVENANCE}: trained_as")
    drafter = METHODS[method].from_checkpoint(target, config, tensors, settings)
    draft_tokens = provenance.get("draft_tokens", drafter.draft_tokens)
    if not isinstance(draft_tokens, int) or draft_tokens < 1:
        raise ModelError(f"{folder}/{PROVENANCE}: draft_tokens is {draft_tokens!r}, and must be 1 or more")
    drafter.draft_tokens = draft_tokens
    drafter.trained_as = trained_as
    if trainable:
        return drafter.to(target.device).train()
    return drafter.to(target.device, target.dtype).eval().requires_grad_(False)


__all__ = [
    "METHODS",
    "PROVENANCE",
    "DraftState",
    "Drafter",
    "DrafterLoss",
    "Draw",
    "Eagle",
    "Eagle3",
    "Features",
    "Medusa",
    "Proposal",
    "Proposer",
    "Sampling",
    "Shape",
    "StaticTree",
    "Tree",
    "answer_counts",
    "load_drafter",
    "new_drafter",
]
