"""EAGLE-3 as TensorRT-LLM's PyTorch backend loads it (https://github.com/NVIDIA/TensorRT-LLM, sources of 2026:
_torch/models/modeling_speculative.py, llmapi/llm_args.py), and the settings to start it with.

The folder: see `engines.py`. The layers that are read come from the settings (`eagle3_layers_to_capture`), not from
the folder. Medusa and the original EAGLE are none of that backend's (`MedusaDecodingConfig.supports_backend`; "EAGLE
(v1/v2) draft checkpoints are incompatible", docs/source/features/speculative-decoding.md).
"""

import yaml

from specdec.drafters import Drafter, Eagle3
from specdec.errors import ModelError
from specdec.export import vllm
from specdec.export.checkpoint import Checkpoint, Layout
from specdec.export.content import Content, Paths
from specdec.export.engines import counted_from_0, eagle3_folder, read_eagle3, refuse

LAUNCH = "trtllm.yaml"


def recognises(found: Checkpoint) -> bool:
    """What TensorRT-LLM would take. Nothing tells its folders from vLLM's or ModelOpt's: it must be asked for."""
    return vllm.is_eagle3(found)


def write(drafter: Drafter, paths: Paths) -> Content:
    if not isinstance(drafter, Eagle3):
        raise refuse(drafter, "TensorRT-LLM", "EAGLE-3 alone")
    config, tensors = eagle3_folder(drafter, "TensorRT-LLM")
    if config["fc_norm"] and config["norm_before_fc"]:
        raise ModelError(
            "TensorRT-LLM norms states once, and here both fc_norm and norm_before_fc are: serve it with vLLM"
        )
    if len(drafter.aux_layers) == 1:
        raise ModelError("TensorRT-LLM fuses several states, and here aux_layers names one: serve it with vLLM")
    return Content(config, tensors, texts={LAUNCH: yaml.safe_dump(_settings(drafter, paths), sort_keys=False)})


def _settings(drafter: Drafter, paths: Paths) -> dict[str, dict[str, object]]:
    """For `trtllm-serve BASE --config`."""
    return {
        "speculative_config": {
            "decoding_type": "Eagle3",
            "max_draft_len": drafter.draft_tokens,
            "speculative_model_dir": paths.drafter,
            "eagle3_layers_to_capture": counted_from_0(drafter.aux_layers),
        }
    }


LAYOUT = Layout("TensorRT-LLM", "trtllm", recognises, read_eagle3, write)
