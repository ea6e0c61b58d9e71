"""A training on its way, which a later process can take up exactly where it stood."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from specdec import io


@dataclass
class Training:
    """A model on its way, with all that a later process needs to go on exactly here."""

    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]
    mark: str  # what the checkpoint belongs to
    step: int = 0
    tokens: int = 0
    loss: float = float("nan")  # smoothed
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, which is whole at any moment."""
        names = ("mark", "step", "tokens", "loss", "seconds")
        facts = {name: str(getattr(self, name)) for name in names}
        with io.replacing(path) as aside:
            save_file({k: v.contiguous() for k, v in self._tensors().items()}, aside, metadata=facts)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v.detach() for k, v in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                found |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items()}
        return found

    def load(self, path: Path) -> bool:
        """Go on where ``path`` was saved; False where it is missing or of other data, settings or code."""
        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("mark") != self.mark:
                return False
            names = list(file.keys())
            self._restore({name: file.get_tensor(name) for name in names})
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        self.loss, self.seconds = float(facts["loss"]), float(facts["seconds"])
        return True

    def _restore(self, stored: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(stored[f"model.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key in (k for k in stored if k.startswith(f"optimizer.{i}.")):
                j, name = key.split(".")[2:]
                state.setdefault(int(j), {})[name] = stored[key]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
