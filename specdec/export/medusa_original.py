"""Medusa as its authors save it (https://github.com/FasterDecoding/Medusa, medusa/model/medusa_model.py).

`config.json`: `medusa_num_heads`, `medusa_num_layers`, `base_model_name_or_path`. Weights: the state of a
`ModuleList` of `Sequential(ResBlock, ..., Linear)`: `{i}.{j}.linear.{weight,bias}` and `{i}.{L}.weight`, perhaps
below `medusa_head.`. Every block is x + SiLU(W x + b). The authors' training writes `medusa_lm_head.safetensors`.
"""

import torch
from torch import Tensor

from specdec.drafters import Drafter, Medusa
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.content import METHODS, Content, Paths
from specdec.export.medusa_heads import check_base, heads, renamed
from specdec.targets import Target

WEIGHTS = "medusa_lm_head.safetensors"
_PREFIX = "medusa_head."


def recognises(found: Checkpoint) -> bool:
    """vLLM knows its own by `model_type`, whatever the count of heads is called there."""
    return "medusa_num_heads" in found.config and found.config.get("model_type") != "medusa"


def read(found: Checkpoint, target: Target) -> Medusa:
    tensors = renamed({name.removeprefix(_PREFIX): t for name, t in found.tensors().items()})
    check_base(target, tensors, found.folder)
    said = whole_number(found.config, "medusa_num_heads", found.folder)
    held = sum(name.startswith("lm_heads.") for name in tensors)
    # Published configurations say 2 where the file holds 5: as many as there are, and no fewer than are said.
    num_heads, num_layers = max(said, held), whole_number(found.config, "medusa_num_layers", found.folder, 1)
    biases = {name for name in tensors if name.endswith(".bias")}
    if len(biases) == num_heads * num_layers and not any(tensors[name].any() for name in biases):
        tensors = {name: t for name, t in tensors.items() if name not in biases}  # heads that have none, as ours
        return heads(target, tensors, num_heads, num_layers, bias=False)
    return heads(target, tensors, num_heads, num_layers, bias=True)


def write(drafter: Drafter, paths: Paths) -> Content:
    """An output layer that heads share is written once for each of them."""
    if not isinstance(drafter, Medusa):
        raise ModelError(
            f"the original Medusa layout holds Medusa heads, and this drafter is {METHODS[drafter.method]}: choose "
            "another --to"
        )
    own, last = drafter.checkpoint_tensors(), drafter.num_layers
    tensors: dict[str, Tensor] = {}
    for i, output in enumerate(drafter.output_weights):
        for j in range(last):
            weight = own[f"blocks.{i}.layers.{j}.weight"]
            tensors[f"{i}.{j}.linear.weight"] = weight
            tensors[f"{i}.{j}.linear.bias"] = own.get(f"blocks.{i}.layers.{j}.bias", torch.zeros_like(weight[0]))
        tensors[f"{i}.{last}.weight"] = output
    _check_layers(drafter, tensors)
    config = {
        "medusa_num_heads": drafter.num_heads,
        "medusa_num_layers": drafter.num_layers,
        "base_model_name_or_path": paths.base,
    }
    return Content(config, tensors, WEIGHTS)


def _check_layers(drafter: Medusa, tensors: dict[str, Tensor]) -> None:
    """Its authors' model runs one and the same block `medusa_num_layers` times."""
    for name, tensor in tensors.items():
        head, layer, *rest = name.split(".", 2)
        if "linear" in name and not torch.equal(tensor, tensors[".".join((head, "0", *rest))]):
            raise ModelError(
                f"the original Medusa repeats one layer a head, and here {drafter.num_layers} differ (head {head}, "
                f"layer {layer}): train with num_layers: 1 for it, or serve the heads with vLLM"
            )


LAYOUT = Layout("the original Medusa", "medusa", recognises, read, write)
