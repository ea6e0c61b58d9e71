"""What a folder of another layout holds, and how it is written: whole, or not at all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from specdec.drafters import Drafter
from specdec.io import replacing_dir, write_json, write_text

METHODS = {"medusa": "Medusa", "eagle": "EAGLE", "eagle3": "EAGLE-3"}  # for people


@dataclass(frozen=True)
class Paths:
    """Base and drafter as the engine finds them: what configurations and launch settings name."""

    base: str
    drafter: str


@dataclass(frozen=True)
class Content:
    """config: `config.json`. weights: the name of the safetensors file. texts: further files, by name."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: str = "model.safetensors"
    texts: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Replaces `folder`; the same content gives the same bytes."""
        with replacing_dir(folder) as aside:
            write_json(aside / "config.json", self.config)
            own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(self.tensors.items())}
            save_file(own, aside / self.weights, metadata={"format": "pt"})
            (aside / self.weights).chmod(0o644)  # safetensors writes 0600: no other user could serve it
            for name, text in self.texts.items():
                write_text(aside / name, text)


def dtype_of(drafter: Drafter) -> torch.dtype:
    """Of its weights."""
    return next(drafter.parameters()).dtype


def dtype_name(drafter: Drafter) -> str:
    """As a configuration names it: `bfloat16`."""
    return str(dtype_of(drafter)).removeprefix("torch.")
