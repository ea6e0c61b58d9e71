"""`model.safetensors` as vLLM loads it, by method: names, shapes, data types, numbers, vocabulary maps."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from specdec.drafters.deployable.base import BaseFacts
from specdec.drafters.deployable.rules import is_whole

_FILE = "model.safetensors"
_EMBEDDING = "embed_tokens.weight"
_MAPS = {"d2t": torch.int64, "t2d": torch.bool}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Shape = tuple[int, ...]


def tensor_findings(
    method: str, config: dict[str, Any], tensors: Mapping[str, Tensor], base: BaseFacts
) -> Iterator[str]:
    """One line for each tensor that is missing, superfluous, of another shape or type, or holds wrong numbers."""
    rules = {"medusa": _medusa, "eagle": _eagle, "eagle3": _eagle3}
    try:
        wanted = rules[method](config, base)
    except _Unsaid as unsaid:
        yield f"{_FILE}: names and shapes were not checked: config.json says no {unsaid}"
    else:
        yield from _shapes(method, wanted, tensors)
    yield from _types(tensors)
    for name, tensor in sorted(tensors.items()):
        count = tensor.numel() - int(tensor.isfinite().sum()) if tensor.is_floating_point() else 0
        if count:
            yield f"{_FILE}: {name} holds {count} numbers that are NaN or infinite, wanted finite ones"
    if method == "eagle3":
        yield from _vocabulary(tensors, base)
    yield from _embedding(method, config, tensors, base)


def _shapes(method: str, wanted: dict[str, Shape], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            yield f"{_FILE}: {name} is missing, wanted {_size(wanted[name])}"
            continue
        found = tuple(tensors[name].shape)
        if name not in wanted:
            yield f"{_FILE}: {name} {_size(found)} is there, wanted absent: {_superfluous(method, name)}"
        elif found != wanted[name]:
            turned = " (it is transposed)" if found == wanted[name][::-1] else ""
            yield f"{_FILE}: {name} is {_size(found)}, wanted {_size(wanted[name])}{turned}"


def _superfluous(method: str, name: str) -> str:
    """Why a tensor that config.json does not ask for must not be there."""
    if name.startswith("model."):
        return "vLLM puts `model.` before the names itself"
    if method == "medusa" and name.endswith(".bias"):
        return "medusa_fc_bias is not true, so vLLM drops it"
    if method == "eagle" and name in ("layers.0.input_layernorm.weight", "norm.weight", "fc.bias"):
        return "vLLM's EAGLE has none"
    if method == "eagle" and name == "lm_head.weight":
        return "EAGLE speaks with the base's output layer"
    if name == _EMBEDDING:
        return "own_embed_tokens is not true in config.json, so the base's is used"
    if name in _MAPS:
        return "there is no draft vocabulary"
    return "config.json describes no such tensor"


def _types(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    weights = {name: tensor.dtype for name, tensor in sorted(tensors.items()) if name not in _MAPS}
    usual = Counter(kind for kind in weights.values() if kind in _FLOATS).most_common(1)
    for name, kind in weights.items():
        if kind not in _FLOATS:
            yield f"{_FILE}: {name} is {_type(kind)}, wanted {', '.join(map(_type, _FLOATS[:-1]))} or float16"
        elif kind is not usual[0][0]:
            yield f"{_FILE}: {name} is {_type(kind)}, wanted {_type(usual[0][0])} as the others"
    for name, kind in _MAPS.items():
        if name in tensors and tensors[name].dtype is not kind:
            yield f"{_FILE}: {name} is {_type(tensors[name].dtype)}, wanted {_type(kind)}"


def _vocabulary(tensors: Mapping[str, Tensor], base: BaseFacts) -> Iterator[str]:
    """d2t[Vd]: the i-th draft token is i + d2t[i], ascending; t2d[V]: whether a token is one of them."""
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is None or d2t.dim() != 1 or d2t.is_floating_point():
        return
    said = d2t.long() + torch.arange(len(d2t), device=d2t.device)
    outside = ((said < 0) | (said >= base.vocab_size)).nonzero().flatten().tolist()
    if outside:
        yield (
            f"{_FILE}: d2t gives {len(outside)} tokens that {base.name} has not, wanted i + d2t[i] from 0 to "
            f"{base.vocab_size - 1}: at {outside[0]} it is {int(said[outside[0]])}"
        )
    falling = (said[1:] <= said[:-1]).nonzero().flatten().tolist()
    if falling:
        i = falling[0]
        yield (
            f"{_FILE}: d2t gives token {int(said[i])} at {i} and {int(said[i + 1])} at {i + 1}, wanted distinct "
            f"tokens i + d2t[i] in ascending order ({len(falling)} such places)"
        )
    if t2d is None or t2d.shape != (base.vocab_size,) or t2d.dtype is not torch.bool:
        return
    if int(t2d.sum()) != len(d2t):
        yield f"{_FILE}: t2d marks {int(t2d.sum())} tokens, wanted {len(d2t)}, the draft vocabulary"
    if not outside:
        implied = torch.zeros_like(t2d)
        implied[said] = True
        differing = (implied ^ t2d).nonzero().flatten().tolist()
        if differing:
            first = differing[0]
            yield (
                f"{_FILE}: t2d is not what d2t says for {len(differing)} tokens, wanted equal: token {first} is "
                f"{'in' if t2d[first] else 'not in'} t2d and {'in' if implied[first] else 'not in'} d2t"
            )


def _embedding(method: str, config: dict[str, Any], tensors: Mapping[str, Tensor], base: BaseFacts) -> Iterator[str]:
    """A copy of the base's embedding is no embedding of its own: both would be held."""
    own = tensors.get(_EMBEDDING)
    if method == "medusa" or own is None or own.shape != (base.vocab_size, base.hidden_size):
        return
    theirs = base.embedding()
    if theirs is not None and theirs.shape == own.shape:
        theirs = theirs.to(own.device)
        if torch.equal(theirs.to(own.dtype), own) or torch.equal(own.to(theirs.dtype), theirs):
            yield f"{_FILE}: {_EMBEDDING} equals {base.name}'s, wanted absent: vLLM shares the base's"


class _Unsaid(Exception):
    """The keys of config.json without which no shape can be told."""


def _numbers(config: dict[str, Any], *keys: str) -> list[int]:
    missing = [key for key in keys if not is_whole(config.get(key))]
    if missing:
        raise _Unsaid(" and no ".join(missing))
    return [config[key] for key in keys]


def _medusa(config: dict[str, Any], base: BaseFacts) -> dict[str, Shape]:
    heads, layers = _numbers(config, "num_heads", "num_hidden_layers")
    width, bias = base.hidden_size, config.get("medusa_fc_bias") is True
    wanted: dict[str, Shape] = {}
    for i in range(heads):
        for j in range(layers):
            wanted[f"blocks.{i}.layers.{j}.weight"] = (width, width)
            if bias:
                wanted[f"blocks.{i}.layers.{j}.bias"] = (width,)
        if config.get("original_lm_head") is not True:
            wanted[f"lm_heads.{i}.weight"] = (base.vocab_size, width)
    if config.get("original_lm_head") is True:
        wanted["lm_head.weight"] = (base.vocab_size, width)
    return wanted


def _eagle(config: dict[str, Any], base: BaseFacts) -> dict[str, Shape]:
    (layers,), width = _numbers(config, "num_hidden_layers"), base.hidden_size
    wanted: dict[str, Shape] = {"fc.weight": (width, 2 * width)}
    for i in range(layers):
        wanted |= _layer(f"layers.{i}.", config, width, width)
    del wanted["layers.0.input_layernorm.weight"]
    if config.get("own_embed_tokens") is True:
        wanted[_EMBEDDING] = (base.vocab_size, width)
    return wanted


def _eagle3(config: dict[str, Any], base: BaseFacts) -> dict[str, Shape]:
    width, layers, states, draft_size = _numbers(
        config, "hidden_size", "num_hidden_layers", "num_aux_hidden_states", "draft_vocab_size"
    )
    read = base.hidden_size
    wanted: dict[str, Shape] = {
        "fc.weight": (width, states * read),
        "layers.0.hidden_norm.weight": (width,),
        "norm.weight": (width,),
        "lm_head.weight": (draft_size, width),
        **_layer("layers.0.", config, width, 2 * width),
    }
    for i in range(1, layers):
        wanted |= _layer(f"layers.{i}.", config, width, width)
    if config.get("fc_norm") is True:
        wanted |= {f"fc_norm.{i}.weight": (read,) for i in range(states)}
    if config.get("norm_before_fc") is True:
        wanted["input_norm.weight"] = (states * read,)
    if width != read or config.get("own_embed_tokens") is True:
        wanted[_EMBEDDING] = (base.vocab_size, width)
    if draft_size < base.vocab_size:
        wanted |= {"d2t": (draft_size,), "t2d": (base.vocab_size,)}
    return wanted


def _layer(prefix: str, config: dict[str, Any], width: int, inputs: int) -> dict[str, Shape]:
    """Llama's decoder layer of `width`, whose attention reads `inputs`."""
    heads, kv_heads, head_dim, inner = _numbers(
        config, "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"
    )
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (heads * head_dim, inputs),
        "self_attn.k_proj.weight": (kv_heads * head_dim, inputs),
        "self_attn.v_proj.weight": (kv_heads * head_dim, inputs),
        "self_attn.o_proj.weight": (width, heads * head_dim),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def _size(shape: Shape) -> str:
    return str(list(shape))


def _type(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
