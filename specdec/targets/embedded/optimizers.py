"""Muon for the hidden matrices, AdamW for the rest, and the schedule of both."""

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from specdec.targets.embedded.settings import EmbeddedSettings


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices (https://kellerjordan.github.io/posts/muon).

    torch's own computes in bfloat16, which most CPUs only emulate; this one stays in float32.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.add_(orthogonal(update), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix: five Newton-Schulz steps bring every singular value near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        b = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.addmm(x, b, x, beta=3.4445)
    return x.T if tall else x


def new_optimizers(model: LlamaForCausalLM, settings: EmbeddedSettings) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for embeddings and norms, for which Muon is not meant."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(hidden, lr=settings.learning_rate),
        torch.optim.AdamW(rest, lr=settings.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, settings: EmbeddedSettings) -> float:
    """Factor of the learning rates at ``step`` (from 0): warm-up, plateau, straight fall to zero."""
    warm = max(1.0, settings.warmup * settings.steps)
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return min(1.0, (step + 1) / warm, left)
