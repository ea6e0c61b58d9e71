"""Linear layers on a CPU from a second copy of their weights, laid out for oneDNN.

torch multiplies float32 by MKL there, whose product of 2 to 16 rows takes up to twice the time of one row; oneDNN's,
from weights that were laid out beforehand, hardly more than that of one. So a pass that verifies drafts costs less
(figures: docs/evaluation.md). Inductor's `freezing` does the same.
"""

import copyreg
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, ref

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def pack(model: nn.Module) -> None:
    """Each `nn.Linear` of `model` on a CPU computes from a packed copy from now on, where no gradient is asked for.

    Nothing is changed where oneDNN lacks the data type, or where the copies would take more than half of the free
    memory. Weights that change are packed again: at the next call where torch notes the change, and when `pack` is
    called again where it does not (`weight.data += ...`, as adapters are merged): seen where it is of a whole row or
    column.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _takes(layer.weight)]
    layers = [layer for layer in layers if "forward" not in vars(layer)]
    size = sum(layer.weight.nbytes for layer in layers)
    if size and 2 * size <= psutil.virtual_memory().available:
        for layer in layers:
            layer.__class__ = PackedLinear
    for module in model.modules():
        if isinstance(module, PackedLinear) and (packed := _packed.get(module)) and not packed.holds(module.weight):
            del _packed[module]


def _takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and _has_bfloat16())


@cache
def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """An `nn.Linear` in its own place. What is copied or saved of it is an `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _takes(weight):
            return linear(input, weight, bias)
        if input.dtype is not weight.dtype or torch.is_autocast_enabled("cpu"):
            return linear(input, weight, bias)
        one_row = input.numel() == input.shape[-1]
        if one_row and weight.dtype is torch.float32:  # nothing beats MKL's product with a vector
            return linear(input, weight, bias)
        packed = _packed.get(self)
        if packed is None or not packed.is_of(weight):
            packed = _packed[self] = _Packed(weight)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(input, packed.weight, bias, "none", [], "")
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return copyreg._reconstructor, (nn.Linear, object, None), *reduced[2:]  # type: ignore[attr-defined]


class _Packed:
    """A weight's copy in oneDNN's layout, and what it was made of."""

    def __init__(self, weight: Tensor):
        self._weight, self._place, self._version = ref(weight), weight.data_ptr(), _version(weight)
        self.weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._sample = _sampled(weight)

    def is_of(self, weight: Tensor) -> bool:
        """Whether torch notes no change since. The memory alone tells nothing: freed, it is handed out again."""
        same = self._weight() is weight and self._place == weight.data_ptr()
        return same and self._version == _version(weight) and self.weight.dtype is weight.dtype

    def holds(self, weight: Tensor) -> bool:
        return self.is_of(weight) and torch.equal(self._sample, _sampled(weight))


_packed: "WeakKeyDictionary[nn.Module, _Packed]" = WeakKeyDictionary()


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _sampled(weight: Tensor) -> Tensor:
    """[max(rows, columns)]: a number of each row and of each column."""
    rows, columns = weight.shape
    places = torch.arange(max(rows, columns))
    return weight.detach()[places % rows, places % columns]
