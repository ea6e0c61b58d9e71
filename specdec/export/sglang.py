"""EAGLE and EAGLE-3 as SGLang loads them (https://github.com/sgl-project/sglang; read in 0.5.23:
srt/models/llama_eagle.py, llama_eagle3.py), and the settings to start it with.

EAGLE: `LlamaForCausalLMEagle`, vLLM's names, and an `fc.bias`, which SGLang's layer has: without one in the file it
would stay at random numbers. Embedding and output layer are the base's. EAGLE-3: see `engines.py`. A base hands on
what *enters* a layer, so nobody ever reads the output of the last one.
"""

import torch
import yaml
from torch import Tensor

from specdec.drafters import Drafter, Eagle, Eagle3
from specdec.errors import ModelError
from specdec.export import vllm
from specdec.export.checkpoint import Checkpoint, Layout
from specdec.export.content import Content, Paths, dtype_name
from specdec.export.eagle_modules import EMBEDDING, FC_BIAS, eagle
from specdec.export.engines import eagle3_folder, read_eagle3, refuse
from specdec.export.llama_config import as_llama
from specdec.targets import Target

LAUNCH = "sglang.yaml"
_ALGORITHMS = {"eagle": "EAGLE", "eagle3": "EAGLE3"}


def recognises(found: Checkpoint) -> bool:
    """What SGLang would take. Nothing tells its folders from vLLM's or ModelOpt's: it must be asked for."""
    return vllm.is_eagle(found) or vllm.is_eagle3(found)


def read(found: Checkpoint, target: Target) -> Drafter:
    return read_eagle3(found, target) if vllm.is_eagle3(found) else eagle(found, target)


def write(drafter: Drafter, paths: Paths) -> Content:
    if isinstance(drafter, Eagle3):
        layers, count = list(drafter.aux_layers), drafter.target.num_layers
        if count in layers:
            raise ModelError(
                f"SGLang hands on what enters a layer, and aux_layers {layers} ask for the output of the last one: "
                f"train it with aux_layers up to {count - 1} for SGLang, or serve it with vLLM or TensorRT-LLM"
            )
        config, tensors = eagle3_folder(drafter, "SGLang")
        return Content(config, tensors, texts=_launch(drafter, paths))
    if isinstance(drafter, Eagle):
        return _eagle(drafter, paths)
    raise refuse(drafter, "SGLang", "EAGLE and EAGLE-3")


def _eagle(drafter: Eagle, paths: Paths) -> Content:
    own, tensors = drafter.checkpoint_config(), drafter.checkpoint_tensors()
    if EMBEDDING in tensors:
        raise ModelError("SGLang takes the base's embedding, and here is one of the module's own: serve it with vLLM")
    if drafter.logit_scale != 1.0:
        raise ModelError(
            f"SGLang's EAGLE leaves the logits as they are, and {drafter.target.name} scales them by "
            f"{drafter.logit_scale}: serve it with vLLM"
        )
    config = {"architectures": ["LlamaForCausalLMEagle"], **as_llama(own), "torch_dtype": dtype_name(drafter)}
    return Content(config, {FC_BIAS: _no_bias(tensors["fc.weight"]), **tensors}, texts=_launch(drafter, paths))


def _no_bias(weight: Tensor) -> Tensor:
    return torch.zeros(len(weight), dtype=weight.dtype)


def _launch(drafter: Drafter, paths: Paths) -> dict[str, str]:
    """For `python -m sglang.launch_server --config`: a chain, whose verification reads one token more."""
    settings = {
        "model-path": paths.base,
        "speculative-algorithm": _ALGORITHMS[drafter.method],
        "speculative-draft-model-path": paths.drafter,
        "speculative-num-steps": drafter.draft_tokens,
        "speculative-eagle-topk": 1,
        "speculative-num-draft-tokens": drafter.draft_tokens + 1,
    }
    return {LAUNCH: yaml.safe_dump(settings, sort_keys=False)}


LAYOUT = Layout("SGLang", "sglang", recognises, read, write)
