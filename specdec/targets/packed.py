"""Linear layers on a CPU from a second copy of their weights, laid out for oneDNN.

torch multiplies float32 by MKL there, whose product of 2 to 16 rows takes up to twice the time of one row; oneDNN's,
from weights that were laid out beforehand, hardly more than that of one. So a pass that verifies drafts costs less
(figures: docs/evaluation.md). Inductor's `freezing` does the same.
"""

from functools import cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def pack(model: nn.Module) -> None:
    """Each `nn.Linear` of `model` on a CPU computes from a packed copy from now on, where no gradient is asked for.

    Nothing is changed where oneDNN lacks the data type, or where the copies would take more than half of the free
    memory. Weights that change are packed again at the next call. Called again, it does nothing.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _takes(layer.weight)]
    layers = [layer for layer in layers if "forward" not in vars(layer)]
    size = sum(layer.weight.nbytes for layer in layers)
    if size and 2 * size > psutil.virtual_memory().available:
        return
    for layer in layers:
        layer.forward = _Packed(layer)  # type: ignore[method-assign]


def _takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and _has_bfloat16())


@cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packed:
    """The forward of one layer: x[..., I] -> [..., O]."""

    def __init__(self, layer: nn.Linear):
        self._layer = layer
        self._packed: Any = None
        self._of: tuple[int, int] | None = None

    def __call__(self, input: Tensor) -> Tensor:
        weight, bias = self._layer.weight, self._layer.bias
        one_row = input.numel() == input.shape[-1]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _takes(weight):
            return linear(input, weight, bias)
        if one_row and weight.dtype is torch.float32:  # nothing beats MKL's product with a vector
            return linear(input, weight, bias)
        of = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if of != self._of:
            self._packed, self._of = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), of
        made: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, bias, "none", [], "")
        return made
