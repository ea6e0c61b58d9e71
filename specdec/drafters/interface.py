"""One interface for every drafter, and what passes through it.

Positions (docs/drafters.md has the picture): `hidden[t]` is the base's state after reading `token_ids[t]`; the
base's own head turns it into token t+1. A drafter starts from `hidden[t]` and the newest token t+1, and proposes
tokens t+2, t+3, ... An *anchor* is a t from which decoding may draft: t+1 and t+2 belong to the same answer.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import specdec
from specdec.errors import ModelError
from specdec.io import replacing_dir, write_json
from specdec.targets import Target

PROVENANCE = "specdec.json"


@dataclass(frozen=True)
class Features:
    """What the frozen base says about one batch of packed rows.

    token_ids[B, T]; loss_mask[B, T]: True on tokens that the base answered; document_ids[B, T]: which
    conversation a token belongs to, -1 for padding; hidden[B, T, H]: after the final norm.
    """

    token_ids: Tensor
    loss_mask: Tensor
    document_ids: Tensor
    hidden: Tensor

    def answer_run(self, length: int) -> Tensor:
        """bool[B, T]: tokens t+1 .. t+length all belong to the answer of t's own document."""
        run = torch.ones_like(self.loss_mask)
        for shift in range(1, length + 1):
            inside = torch.zeros_like(run)
            same = self.document_ids[:, shift:] == self.document_ids[:, :-shift]
            inside[:, :-shift] = self.loss_mask[:, shift:] & same & (self.document_ids[:, :-shift] >= 0)
            run &= inside
        return run


@dataclass(frozen=True)
class DrafterLoss:
    """loss: what is minimised. losses[K], accuracies[K]: mean per draft position, detached.

    accepted[B, T]: how many leading draft positions are right when drafting at t; -1 where t is no anchor.
    """

    loss: Tensor
    losses: Tensor
    accuracies: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Proposal:
    """A chain of draft tokens[K], each the drafter's single choice (a deterministic proposal)."""

    token_ids: Tensor


class Drafter(nn.Module, ABC):
    """Base class. `config.json` and `model.safetensors` are the layout that vLLM loads for `method`."""

    method: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_config(cls, target: Target, settings: Any) -> Self:
        """A fresh drafter for `target`, started as its paper starts it, in float32 on the target's device."""

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The drafter that `config.json` and the tensors describe. Raises ModelError on missing or wrong ones."""

    @abstractmethod
    def checkpoint_config(self) -> dict[str, Any]:
        """`config.json` as vLLM reads it."""

    @property
    @abstractmethod
    def max_draft_tokens(self) -> int:
        """The longest chain that one call of `propose` can give."""

    @abstractmethod
    def loss(self, features: Features) -> DrafterLoss:
        """The training loss over every anchor of a batch; never holds [B, T, V]."""

    @abstractmethod
    def propose(self, hidden: Tensor, budget: int) -> Proposal:
        """hidden[H]: the base's state that produced the newest token -> the next `budget` tokens at most."""

    def forward(self, features: Features) -> DrafterLoss:
        """The loss: training wrappers (autocast, DDP, FSDP) hook into `forward`."""
        return self.loss(features)

    def save_pretrained(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Writes the checkpoint and `specdec.json` atomically; the same drafter gives the same bytes."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(self.state_dict().items())}
        with replacing_dir(folder) as aside:
            write_json(aside / "config.json", self.checkpoint_config())
            save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
            (aside / "model.safetensors").chmod(0o644)  # safetensors writes 0600: no other user could serve it
            record = {"method": self.method, "specdec": specdec.__version__, **provenance}
            write_json(aside / PROVENANCE, record)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(config, tensors, provenance) of a drafter's folder. Raises ModelError when a part is missing or torn."""
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        provenance = json.loads((folder / PROVENANCE).read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no drafter: {Path(error.filename).name} is missing") from None
    except (ValueError, OSError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged ({error}): train or download the drafter again") from None
    return config, tensors, provenance


def check_identity(folder: Path, provenance: dict[str, Any], target: Target) -> None:
    """Raises ModelError, naming both hashes, when the drafter was trained on another base."""
    trained_on = provenance.get("base", {})
    for part, actual in target.identity.as_dict().items():
        if trained_on.get(part) != actual:
            raise ModelError(
                f"{folder} was trained on another {part.replace('_', ' ')}: it has {trained_on.get(part)}, "
                f"{target.name} has {actual}; train a drafter for this base, or pass force=True"
            )
