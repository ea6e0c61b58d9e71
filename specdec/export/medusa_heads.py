"""What the layouts of Medusa share: from the others' tensor names to heads of ours."""

import re
from pathlib import Path

from torch import Tensor

from specdec.drafters import Medusa
from specdec.errors import ModelError
from specdec.targets import Target

_BLOCK = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)")
_OUTPUT = re.compile(r"(\d+)\.\d+\.weight")


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`{i}.{j}.linear.weight` -> `blocks.{i}.layers.{j}.weight`, `{i}.{L}.weight` -> `lm_heads.{i}.weight`.

    The names of a torch `ModuleList` of `Sequential(ResBlock, ..., Linear)`; all others stay as they are.
    """
    return {_our_name(name): tensor for name, tensor in tensors.items()}


def _our_name(name: str) -> str:
    if block := _BLOCK.fullmatch(name):
        return "blocks.{}.layers.{}.{}".format(*block.groups())
    if output := _OUTPUT.fullmatch(name):
        return f"lm_heads.{output[1]}.weight"
    return name


def heads(
    target: Target, tensors: dict[str, Tensor], num_heads: int, num_layers: int, bias: bool, shared: bool = False
) -> Medusa:
    """Medusa heads of our names. Raises ModelError, naming tensors that are missing, unknown or of another size."""
    config = {
        "model_type": "medusa",
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "num_heads": num_heads,
        "num_hidden_layers": num_layers,
        "medusa_fc_bias": bias,
        "original_lm_head": shared,
    }
    return Medusa.from_checkpoint(target, config, tensors)


def check_base(target: Target, tensors: dict[str, Tensor], where: Path) -> None:
    """Raises ModelError when the first head's output layer is not as large as the base's."""
    for name, tensor in sorted(tensors.items()):
        if name.endswith("lm_heads.0.weight") and tuple(tensor.shape) != (target.vocab_size, target.hidden_size):
            raise ModelError(
                f"{where} is for another base: its heads are {' x '.join(map(str, tensor.shape))}, and {target.name} "
                f"is {target.vocab_size} x {target.hidden_size} (vocabulary x hidden size)"
            )
