"""Medusa as its authors save it (https://github.com/FasterDecoding/Medusa, medusa/model/medusa_model.py).

`config.json`: `medusa_num_heads`, `medusa_num_layers`, `base_model_name_or_path`. Weights: the state of a
`ModuleList` of `Sequential(ResBlock, ..., Linear)`: `{i}.{j}.linear.{weight,bias}` and `{i}.{L}.weight`, perhaps
below `medusa_head.`. Every block is x + SiLU(W x + b).
"""

from specdec.drafters import Medusa
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.medusa_heads import check_base, heads, renamed
from specdec.targets import Target

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
    return heads(target, tensors, num_heads, num_layers, bias=True)


LAYOUT = Layout("the original Medusa", recognises, read)
