"""Medusa, EAGLE and EAGLE-3 as vLLM reads them without our `specdec.json` (vLLM 0.32, model_executor/models/:
medusa.py, llama_eagle.py, llama_eagle3.py), the checkpoints that SafeAILab publishes among them
(https://github.com/SafeAILab/EAGLE, eagle/model/cnets1.py and cnets.py).

What is read is what vLLM reads, except that nothing is passed over in silence: where vLLM skips tensors, or takes
random numbers for missing ones, the checkpoint is refused.
"""

import re

from specdec.drafters import Drafter
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, Layout, whole_number
from specdec.export.eagle_modules import Eagle3Facts, default_aux_layers, eagle, eagle3, layer_ids, norms
from specdec.export.medusa_heads import check_base, heads, renamed
from specdec.targets import Target

_EAGLE = {"fc.weight", "layers.0.self_attn.q_proj.weight"}
_EAGLE3 = re.compile(r"(midlayer|layers\.0)\.hidden_norm\.weight")


def recognises(found: Checkpoint) -> bool:
    """A module of speculators has vLLM's tensors, but says its sizes elsewhere."""
    return found.config.get("model_type") == "medusa" or is_eagle3(found) or is_eagle(found)


def read(found: Checkpoint, target: Target) -> Drafter:
    if found.config.get("model_type") == "medusa":
        return _medusa(found, target)
    return _eagle3(found, target) if is_eagle3(found) else eagle(found, target)


def is_eagle3(found: Checkpoint) -> bool:
    return any(_EAGLE3.fullmatch(name) for name in found.files) and "speculators_model_type" not in found.config


def is_eagle(found: Checkpoint) -> bool:
    return found.files.keys() >= _EAGLE and not is_eagle3(found) and "speculators_model_type" not in found.config


def _eagle3(found: Checkpoint, target: Target) -> Drafter:
    config = found.config
    nested = config.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    if nested.get("use_aux_hidden_state") is False:
        raise ModelError(f"{found.folder}/config.json: EAGLE-3 without auxiliary states is not known here")
    said = config.get("eagle_aux_hidden_state_layer_ids") or nested.get("eagle_aux_hidden_state_layer_ids")
    facts = Eagle3Facts(
        aux_layers=layer_ids(said, found.folder) or default_aux_layers(target), **norms(config, nested)
    )
    return eagle3(found, target, config, facts)


def _medusa(found: Checkpoint, target: Target) -> Drafter:
    config, where = found.config, found.folder
    for key, wanted in (("hidden_size", target.hidden_size), ("vocab_size", target.vocab_size)):
        if whole_number(config, key, where) != wanted:
            raise ModelError(
                f"{where} is for another base: its {key} is {config[key]}, that of {target.name} {wanted}"
            )
    if (config.get("truncated_vocab_size") or target.vocab_size) != target.vocab_size:
        raise ModelError(f"{where}/config.json: truncated_vocab_size: Medusa heads here speak the whole vocabulary")
    if config.get("logit_scale", 1.0) != 1.0:
        raise ModelError(
            f"{where}/config.json: logit_scale is {config['logit_scale']!r}: Medusa heads here have none"
        )
    shared = bool(config.get("original_lm_head"))
    tensors = renamed({name.removeprefix("medusa_heads."): t for name, t in found.tensors().items()})
    if shared and "lm_head.weight" not in tensors and "lm_heads.0.weight" in tensors:
        tensors["lm_head.weight"] = tensors.pop("lm_heads.0.weight")
    check_base(target, tensors, where)
    return heads(
        target,
        tensors,
        whole_number(config, _key(found, "heads", "num_heads"), where),
        whole_number(config, _key(found, "layers", "num_hidden_layers"), where, 1),
        bool(config.get("medusa_fc_bias")),
        shared,
    )


def _key(found: Checkpoint, part: str, usual: str) -> str:
    """vLLM takes any key with `num` and this part in it, the last of them."""
    keys = [key for key in found.config if "num" in key and part in key]
    return keys[-1] if keys else usual


LAYOUT = Layout("vLLM", "vllm", recognises, read)
