"""A base or drafter that says no numbers is named at once; in decoding such a look would cost time in every step."""

import torch
from torch import nn

from specdec.drafters import Drafter, DraftState, Draw, Sampling
from specdec.errors import ModelError
from specdec.targets import Target


@torch.inference_mode()
def check_finite(target: Target, drafter: Drafter, prompts: list[list[int]]) -> None:
    """Raises ModelError when weights, or what is said behind a prompt, hold NaN or infinite numbers."""
    dtype = str(target.dtype).removeprefix("torch.")
    base, kind = f"the base {target.name} in {dtype}", f"the {drafter.method} drafter in {dtype}"
    _check_weights(target.model, base, "fetch it again, or choose another base")
    _check_weights(drafter, kind, "train it again")
    for number, ids in enumerate(prompts, 1):
        read = target.forward(torch.tensor([ids], device=target.device), layers=drafter.aux_layers)
        logits = target.logits(read.hidden[0, -1:])
        if not (torch.isfinite(read.hidden).all() and torch.isfinite(logits).all()):
            raise ModelError(
                f"{base} says NaN or infinite logits for prompt {number}: its numbers overflow; choose another "
                "data type or base"
            )
        state = DraftState(start=ids[0])
        following = torch.tensor(ids[1:], dtype=torch.long, device=target.device)
        auxiliary = None if read.auxiliary is None else read.auxiliary[0]
        state.observe(torch.cat([following, logits.argmax(-1)]), read.hidden[0], auxiliary)
        laws = drafter.propose(state, drafter.draft_tokens, None, Draw(Sampling(1.0), _fixed(target))).laws
        if laws is None or not torch.isfinite(laws).all():
            raise ModelError(
                f"{kind} says NaN or infinite logits behind prompt {number}: its numbers overflow; train it again, "
                "or choose another data type"
            )


def _check_weights(model: nn.Module, whose: str, advice: str) -> None:
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ModelError(f"{whose} has NaN or infinite numbers in {name}: {advice}")


def _fixed(target: Target) -> torch.Generator:
    return torch.Generator(target.device).manual_seed(0)
