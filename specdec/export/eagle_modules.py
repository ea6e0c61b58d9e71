"""What the layouts of EAGLE and EAGLE-3 share: from the others' tensor names to a drafter of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdec.drafters import Eagle, Eagle3
from specdec.errors import ModelError
from specdec.export.checkpoint import Checkpoint, whole_number
from specdec.export.llama_config import layer_sizes
from specdec.targets import Target

DRAFT_TOKENS = 3  # where a layout does not say
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
FC_BIAS = "fc.bias"


@dataclass(frozen=True)
class Eagle3Facts:
    """What a layout says of its EAGLE-3 module beside the layer's sizes.

    aux_layers: of the base; i is the output of decoder layer i-1 (0: the embeddings), as in `Target.forward`.
    """

    aux_layers: tuple[int, ...]
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    draft_tokens: int = DRAFT_TOKENS


def norms(config: dict[str, Any], nested: dict[str, Any] | None = None) -> dict[str, bool]:
    """Those of `Eagle3Facts`, where vLLM, SGLang and TensorRT-LLM look for them. nested: `eagle_config`."""
    said = {**config, **{key: value for key, value in (nested or {}).items() if key == "norm_before_fc"}}
    return {key: bool(said.get(key)) for key in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")}


def default_aux_layers(target: Target) -> tuple[int, ...]:
    """(2, L/2, L-3): what vLLM, speculators and SafeAILab take where nothing is said (ours read the last layer)."""
    return (2, target.num_layers // 2, target.num_layers - 3)


def eagle(found: Checkpoint, target: Target) -> Eagle:
    """EAGLE by vLLM's names, which are SafeAILab's. A bias of `fc` and an embedding of its own are kept."""
    sizes, where = layer_sizes(found.config, found.folder), found.folder
    _fits(where, "hidden_size", sizes.hidden_size, target.hidden_size, target)
    vocab_size = whole_number(found.config, "vocab_size", where)
    _fits(where, "vocab_size", vocab_size, target.vocab_size, target)
    tensors = _renamed(found.tensors())
    if FC_BIAS in tensors and not tensors[FC_BIAS].any():
        del tensors[FC_BIAS]  # SGLang's `fc` wants one, even where it adds nothing
    _drop_copies(tensors, {EMBEDDING: target.embedding_weight, HEAD: target.output_weight})
    if HEAD in tensors:
        raise ModelError(f"{where}: {HEAD} is not {target.name}'s, with whose output layer EAGLE speaks")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes.as_config(),
        **({} if target.logit_scale == 1.0 else {"logit_scale": target.logit_scale}),
        **({"eagle_fc_bias": True} if FC_BIAS in tensors else {}),
        **({"own_embed_tokens": True} if EMBEDDING in tensors else {}),
        "num_hidden_layers": whole_number(found.config, "num_hidden_layers", where, 1),
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
    }
    drafter = Eagle.from_checkpoint(target, config, tensors)
    drafter.draft_tokens = DRAFT_TOKENS
    return drafter


def eagle3(found: Checkpoint, target: Target, described: dict[str, Any], facts: Eagle3Facts) -> Eagle3:
    """EAGLE-3 by vLLM's names. described: the Llama configuration with the sizes, of `found.config` or below it."""
    sizes, where = layer_sizes(described, found.folder), found.folder
    vocab_size = whole_number(described, "vocab_size", where)
    draft_size = whole_number(found.config, "draft_vocab_size", where, vocab_size)
    read_size = whole_number(found.config, "target_hidden_size", where, sizes.hidden_size)
    _fits(where, "vocab_size", vocab_size, target.vocab_size, target)
    _fits(where, "target_hidden_size" if read_size != sizes.hidden_size else "hidden_size", read_size,
          target.hidden_size, target)  # fmt: skip
    if draft_size > vocab_size:
        raise ModelError(f"{where}/config.json: draft_vocab_size is {draft_size}, and vocab_size {vocab_size}")
    _check_aux_layers(facts.aux_layers, target, where)
    tensors = _renamed(found.tensors())
    _drop_copies(tensors, {EMBEDDING: target.embedding_weight})
    _set_vocabulary(tensors, draft_size, vocab_size, where)
    layers = list(facts.aux_layers)
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **sizes.as_config(),
        **({"own_embed_tokens": True} if EMBEDDING in tensors and read_size == sizes.hidden_size else {}),
        "num_hidden_layers": whole_number(described, "num_hidden_layers", where, 1),
        "vocab_size": vocab_size,
        "draft_vocab_size": draft_size,
        "target_hidden_size": target.hidden_size,
        "norm_before_residual": facts.norm_before_residual,
        "norm_before_fc": facts.norm_before_fc,
        "fc_norm": facts.fc_norm,
        "norm_output": facts.norm_output,
        "eagle_aux_hidden_state_layer_ids": layers,
        "num_aux_hidden_states": len(layers),
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": layers},
        "tie_word_embeddings": False,
    }
    drafter = Eagle3.from_checkpoint(target, config, tensors)
    drafter.draft_tokens = facts.draft_tokens
    return drafter


def layer_ids(value: Any, where: Path) -> tuple[int, ...]:
    """The auxiliary layers that a configuration lists, ascending as all read them; () for null. Raises ModelError."""
    value = value or []
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise ModelError(f"{where}/config.json: eagle_aux_hidden_state_layer_ids is {value!r}, and must list layers")
    return tuple(sorted(value))


def _fits(where: Path, key: str, said: int, wanted: int, target: Target) -> None:
    if said != wanted:
        raise ModelError(f"{where} is for another base: its {key} is {said}, and that of {target.name} {wanted}")


def _check_aux_layers(layers: tuple[int, ...], target: Target, where: Path) -> None:
    if len(set(layers)) < len(layers) or min(layers) < 0 or max(layers) > target.num_layers:
        raise ModelError(
            f"{where} reads the states {list(layers)} of its base, and {target.name} has layers 1 to "
            f"{target.num_layers} (0: embeddings), each to be read once"
        )


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """SafeAILab calls EAGLE-3's layer `midlayer`; old transformers kept rotary tables among the weights."""
    kept = {n: t for n, t in tensors.items() if ".rotary_emb." not in n}
    return {n.replace("midlayer.", "layers.0.", 1) if n.startswith("midlayer.") else n: t for n, t in kept.items()}


def _drop_copies(tensors: dict[str, Tensor], of_the_base: dict[str, Tensor]) -> None:
    """What equals the base's own tensor is not held twice."""
    for name, own in of_the_base.items():
        if name in tensors and same(tensors[name], own):
            del tensors[name]


def same(copy: Tensor, own: Tensor) -> bool:
    """Whether the copy is the base's tensor, up to the rounding to the other's data type."""
    if copy.shape != own.shape:
        return False
    copy = copy.to(own.device)
    return torch.equal(copy.to(own.dtype), own) or torch.equal(own.to(copy.dtype), copy)


def _set_vocabulary(tensors: dict[str, Tensor], draft_size: int, vocab_size: int, where: Path) -> None:
    """`d2t` and `t2d` in our types; `t2d` follows from `d2t` (ModelOpt writes the latter alone)."""
    d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
    if draft_size == vocab_size:
        if d2t is not None and d2t.any():
            raise ModelError(f"{where}: d2t moves tokens, and the draft vocabulary is the whole one")
        return
    if d2t is None:
        raise ModelError(
            f"{where}: d2t is missing, which says the tokens of the {draft_size} in the draft vocabulary"
        )
    said = d2t.long() + torch.arange(len(d2t))
    if d2t.shape != (draft_size,) or said.min() < 0 or said.max() >= vocab_size:
        raise ModelError(f"{where}: d2t must name {draft_size} tokens below {vocab_size}")
    named = torch.zeros(vocab_size, dtype=torch.bool)
    named[said] = True
    tensors["d2t"], tensors["t2d"] = d2t.long(), named if t2d is None else t2d.bool()
