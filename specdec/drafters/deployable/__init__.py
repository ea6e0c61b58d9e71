"""Whether a drafter's `config.json`, tensors and record are what vLLM serves as this drafter, on this base.

vLLM passes over most of what is wrong: unknown tensors are skipped, missing ones stay random, further keys overwrite
those that count. What is asked here is read from vLLM 0.32 (transformers_utils/configs/medusa.py, model_executor/
models/medusa.py, llama_eagle.py, llama_eagle3.py, v1/worker/gpu_model_runner.py) and says it from the format alone:
nothing of the drafters' own modules is used.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from specdec.drafters.deployable.base import BaseFacts
from specdec.drafters.deployable.config import config_findings
from specdec.drafters.deployable.record import record_findings
from specdec.drafters.deployable.tensors import tensor_findings


def findings(
    method: str,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    record: dict[str, Any] | None,
    base: BaseFacts,
) -> list[str]:
    """What is wrong, one line each, named by file and key or tensor; empty: it can be deployed. Changes nothing.

    method: `medusa`, `eagle` or `eagle3`. record: `specdec.json`; None: not to be looked at. The numbers of each
    tensor are read once.
    """
    return [
        *config_findings(method, config, tensors, base),
        *tensor_findings(method, config, tensors, base),
        *([] if record is None else record_findings(method, config, record, base)),
    ]


__all__ = ["BaseFacts", "findings"]
