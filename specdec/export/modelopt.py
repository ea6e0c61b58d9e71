"""Medusa and EAGLE-3 as ModelOpt exports them (nvidia-modelopt; read in 0.37 and 0.47:
torch/export/plugins/hf_spec_export.py, torch/speculative/plugins/).

EAGLE-3: vLLM's names, `midlayer.` for `layers.0.` in older releases, `d2t` without `t2d`. `eagle_config` lists the
auxiliary layers, counted from 0: i is the *output of layer i*, which is i+1 in vLLM, in speculators and here. The
state before `norm` goes on to the next draft position. The norms of EAGLE-3.1, which ModelOpt does not write, are
read where the engines look for them.
What is read is what the export says and the engines compute: 0.47's own forward norms the state twice
(`input_layernorm`, then `hidden_norm`), and its export writes a YaRN scaling for long contexts unless told not to.

Medusa: heads are no checkpoint of their own, but saved with the base: its `config.json` with
`medusa: {num_medusa_heads, num_medusa_layers}`, its tensors, and `medusa_heads.{i}.{j}.linear.{weight,bias}`,
`medusa_heads.{i}.{L}.weight`.
"""

from specdec.drafters import Drafter
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.eagle_modules import Eagle3Facts, eagle3, layer_ids, norms, same
from specdec.export.medusa_heads import check_base, heads, renamed
from specdec.targets import Target

_PREFIX = "medusa_heads."
_OWN_KEYS = {"use_last_layernorm", "use_input_layernorm_in_first_layer", "use_mtp_layernorm", "next_layer_regular"}


def recognises(found: Checkpoint) -> bool:
    """Others write an `eagle_config` too, but without ModelOpt's own keys."""
    medusa, eagle = found.config.get("medusa"), found.config.get("eagle_config")
    return isinstance(medusa, dict) or (isinstance(eagle, dict) and bool(_OWN_KEYS & eagle.keys()))


def read(found: Checkpoint, target: Target) -> Drafter:
    return _medusa(found, target) if isinstance(found.config.get("medusa"), dict) else _eagle3(found, target)


def _eagle3(found: Checkpoint, target: Target) -> Drafter:
    said = found.config["eagle_config"]
    if not said.get("use_aux_hidden_state"):
        # Without auxiliary states ModelOpt's module never reads the tokens that it drafts behind.
        raise ModelError(
            f"{found.folder}/config.json: eagle_config.use_aux_hidden_state is not true: of ModelOpt's EAGLE "
            "modules, EAGLE-3 is known here"
        )
    counted = layer_ids(said.get("eagle_aux_hidden_state_layer_ids"), found.folder)
    layers = tuple(i + 1 for i in counted or _default_layers(target.num_layers))
    return eagle3(found, target, found.config, Eagle3Facts(aux_layers=layers, **norms(found.config, said)))


def _default_layers(num_layers: int) -> list[int]:
    """What ModelOpt reads unless told otherwise, in its own count."""
    return sorted({1, max(0, num_layers // 2 - 1), max(0, num_layers - 4)})


def _medusa(found: Checkpoint, target: Target) -> Drafter:
    said = found.config["medusa"]
    num_heads = whole_number(said, "num_medusa_heads", found.folder)
    num_layers = whole_number(said, "num_medusa_layers", found.folder)
    own = [name for name in found.files if name.startswith(_PREFIX)]
    tensors = renamed({name.removeprefix(_PREFIX): t for name, t in found.tensors(own).items()})
    check_base(target, tensors, found.folder)
    _check_copies(found, target, set(found.files) - set(own))
    return heads(target, tensors, num_heads, num_layers, bias=True)


def _check_copies(found: Checkpoint, target: Target, names: set[str]) -> None:
    """The base that is saved with the heads must be this one, by its tensors: it may have been trained with them."""
    held = target.model.state_dict()
    for name in sorted(names):
        if name not in held:
            raise ModelError(f"{found.folder}: {name} belongs neither to the Medusa heads nor to {target.name}")
        if not same(found.tensors([name])[name], held[name]):
            raise ModelError(f"{found.folder} is for another base: its {name} differs from that of {target.name}")


LAYOUT = Layout("ModelOpt", "modelopt", recognises, read)
