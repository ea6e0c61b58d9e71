"""`config.json` as vLLM reads it, by method."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from specdec.drafters.deployable.base import BaseFacts
from specdec.drafters.deployable.rules import (
    equal,
    flags,
    is_positive,
    is_whole,
    misleading,
    said,
    shown,
    wanted,
    whole,
)
from specdec.drafters.llama_layer import ROPE_TYPES

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
# Keys with which vLLM, or transformers, would read the folder as another one: absent, or one of these values.
_MISLEADING: dict[str, tuple[Any, ...]] = {
    "auto_map": (None,),
    "quantization_config": (None,),
    "compression_config": (None,),
    "speculators_model_type": (None,),
    "speculators_config": (None,),
}
_MISLEADING_MEDUSA = {"logit_scale": (1,)}
_MISLEADING_LLAMA: dict[str, tuple[Any, ...]] = {
    "rope_scaling": (None,),  # would be taken for rope_parameters
    "partial_rotary_factor": (None, 1),
    "sliding_window": (None,),
    "layer_types": (None,),
    "bias": (None, False),
    "qkv_bias": (None, False),
    "eagle_fc_bias": (None, False),  # ours; vLLM's fc has no bias
}
_LAYER_SIZES = (
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_EAGLE3_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def config_findings(method: str, config: dict[str, Any], tensors: Mapping[str, Tensor], base: BaseFacts) -> list[str]:
    """What vLLM, or transformers below it, would misread; tensors: for their data type alone."""
    rules = {"medusa": _medusa, "eagle": _eagle, "eagle3": _eagle3}
    return [*misleading(config, _MISLEADING), *rules[method](config, base), *_dtype(config, tensors)]


def _medusa(config: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    yield from wanted(config, {"model_type": "medusa", "architectures": ["MedusaModel"]})
    yield from wanted(config, {"hidden_size": base.hidden_size, "vocab_size": base.vocab_size}, f" as {base.name}'s")
    yield from whole(config, ("num_heads", "num_hidden_layers"))
    yield from flags(config, ("medusa_fc_bias", "original_lm_head"))
    yield from misleading(config, {**_MISLEADING_MEDUSA, "truncated_vocab_size": (None, base.vocab_size)})
    for key in sorted(config.keys() - {"num_heads", "num_hidden_layers"}):
        if "num" in key and ("heads" in key or "layers" in key):
            taken = "num_heads" if "heads" in key else "num_hidden_layers"
            yield f"config.json: {key} is {shown(config[key])}, wanted absent: vLLM takes it for {taken}"


def _eagle(config: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    yield from wanted(config, {"architectures": ["LlamaForCausalLM"]})
    yield from wanted(config, {"hidden_size": base.hidden_size}, f" as {base.name}'s")
    yield from _llama(config, base)
    yield from misleading(config, {"draft_vocab_size": (None, base.vocab_size)})
    scale = config.get("logit_scale", 1.0)
    if not equal(scale, base.logit_scale):
        yield f"config.json: logit_scale is {shown(scale)}, wanted {base.logit_scale} as {base.name}'s"


def _eagle3(config: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    yield from wanted(config, {"architectures": ["LlamaForCausalLMEagle3"]})
    yield from wanted(config, {"target_hidden_size": base.hidden_size}, f" as {base.name}'s")
    yield from _llama(config, base)
    yield from whole(config, ("hidden_size", "draft_vocab_size"))
    if is_whole(size := config.get("draft_vocab_size")) and size > base.vocab_size:
        yield f"config.json: draft_vocab_size is {size}, wanted at most {base.vocab_size}, {base.name}'s vocabulary"
    yield from flags(config, _EAGLE3_FLAGS)
    yield from misleading(config, {"logit_scale": (1,)})  # the output layer is the drafter's own
    yield from _layer_ids(config, base)


def _layer_ids(config: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    """The auxiliary layers, in the three places from which vLLM takes them: i is the output of layer i-1."""
    nested = config.get("eagle_config")
    nested = nested if isinstance(nested, dict) else {}
    if nested.get("use_aux_hidden_state") is not True:
        yield f"config.json: eagle_config.use_aux_hidden_state is {said(nested, 'use_aux_hidden_state')}, wanted true"
    if "norm_before_fc" in nested and nested["norm_before_fc"] != config.get("norm_before_fc"):
        yield (
            f"config.json: eagle_config.norm_before_fc is {shown(nested['norm_before_fc'])}, wanted "
            f"{said(config, 'norm_before_fc')} as norm_before_fc beside it"
        )
    for where, holder in ((LAYER_IDS, config), (f"eagle_config.{LAYER_IDS}", nested)):
        yield from _one_list(where, holder.get(LAYER_IDS), base)
    top, below = config.get(LAYER_IDS), nested.get(LAYER_IDS)
    if top != below:
        yield (
            f"config.json: eagle_config.{LAYER_IDS} is {shown(below)}, wanted {shown(top)} as in {LAYER_IDS} "
            "beside it: vLLM reads both"
        )
    count = config.get("num_aux_hidden_states")
    if isinstance(top, list) and not equal(count, len(top)):
        yield f"config.json: num_aux_hidden_states is {shown(count)}, wanted {len(top)} as {LAYER_IDS} lists"


def _one_list(where: str, ids: Any, base: BaseFacts) -> Iterator[str]:
    if not isinstance(ids, list) or not ids or not all(is_whole(i, 0) for i in ids):
        yield f"config.json: {where} is {shown(ids)}, wanted a list of layers of {base.name}"
        return
    outside = [i for i in ids if i > base.num_layers]
    if outside:
        yield (
            f"config.json: {where} is {ids}, wanted layers up to {base.num_layers} (0: the embeddings): {base.name} "
            f"has no layer {outside[0]}"
        )
    if ids != sorted(set(ids)):
        yield f"config.json: {where} is {ids}, wanted each layer once, in ascending order: vLLM sorts them"


def _llama(config: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    yield from wanted(config, _LLAMA)
    yield from wanted(config, {"vocab_size": base.vocab_size}, f" as {base.name}'s")
    yield from whole(config, _LAYER_SIZES)
    yield from misleading(config, _MISLEADING_LLAMA)
    if not is_positive(config.get("rms_norm_eps")):
        yield f"config.json: rms_norm_eps is {said(config, 'rms_norm_eps')}, wanted a number above 0"
    hidden, heads, kv_heads, head_dim = (
        config.get(k) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if is_whole(heads) and is_whole(kv_heads) and heads % kv_heads:
        yield f"config.json: num_key_value_heads is {kv_heads}, wanted a divisor of num_attention_heads, {heads}"
    if is_whole(heads) and is_whole(hidden) and hidden % heads:
        yield f"config.json: num_attention_heads is {heads}, wanted a divisor of hidden_size, {hidden}"
    if is_whole(head_dim) and head_dim % 2:
        yield f"config.json: head_dim is {head_dim}, wanted an even number, whose halves rotary embeddings turn"
    yield from _rope(config)


def _rope(config: dict[str, Any]) -> Iterator[str]:
    """transformers 5 reads `rope_parameters`, earlier ones `rope_theta` beside it."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        yield f"config.json: rope_parameters is {said(config, 'rope_parameters')}, wanted an object with rope_theta"
        return
    if rope.get("rope_type") not in ROPE_TYPES:
        kinds = ", ".join(ROPE_TYPES)
        yield f"config.json: rope_parameters.rope_type is {said(rope, 'rope_type')}, wanted one of {kinds}"
    if not is_positive(rope.get("rope_theta")):
        yield f"config.json: rope_parameters.rope_theta is {said(rope, 'rope_theta')}, wanted a number above 0"
    elif not equal(config.get("rope_theta"), rope["rope_theta"]):
        own = said(config, "rope_theta")
        yield f"config.json: rope_theta is {own}, wanted {rope['rope_theta']} as in rope_parameters"
    if rope.get("partial_rotary_factor", 1) != 1:
        yield f"config.json: rope_parameters.partial_rotary_factor is {rope['partial_rotary_factor']}, wanted absent"


def _dtype(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    held = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}
    for key in ("dtype", "torch_dtype"):
        if key in config and held and config[key] not in held:
            yield f"config.json: {key} is {shown(config[key])}, wanted {' or '.join(sorted(held))} as the tensors"
