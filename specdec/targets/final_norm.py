"""The norm between a base's last layer and its output layer."""

import torch
from torch import nn

from specdec.errors import ModelError
from specdec.targets.target import Target


@torch.inference_mode()
def final_norm(target: Target) -> nn.Module:
    """The module that makes `TargetOutput.hidden` of the last layer's output, proven on a few tokens.

    Raises ModelError where there is none such.
    """
    ids = torch.arange(min(5, target.vocab_size), device=target.device)[None]
    read = target.forward(ids, layers=(target.num_layers,))
    assert read.auxiliary is not None
    if torch.equal(read.auxiliary, read.hidden):
        return nn.Identity()
    for module in target.model.base_model.children():
        weight = getattr(module, "weight", None)
        if weight is None or weight.shape != (target.hidden_size,):
            continue
        if torch.allclose(module(read.auxiliary), read.hidden, rtol=1e-3, atol=1e-4):
            return module
    raise ModelError(
        f"{target.name} ({target.model.config.model_type}): the norm behind its last layer was not found, which "
        "states from a server need: set features to cached"
    )
