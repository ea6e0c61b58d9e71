"""Settings as params.yaml would state them, small."""

from typing import Any

from specdec.config import MedusaSettings, Sampling, Synthesize


def medusa(num_heads: int = 2, num_layers: int = 1, **training: Any) -> dict[str, Any]:
    """A drafter's section; keywords change its `training`."""
    defaults = {
        "epochs": 2.0,
        "learning_rate": 1e-3,
        "warmup_share": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 64,
        "rows_per_step": 2,
        "save_steps": 5,
        "dtype": "float32",
        "seed": 0,
    }
    heads = {"method": "medusa", "num_heads": num_heads, "num_layers": num_layers, "head_decay": 0.8}
    return {**heads, "training": {**defaults, **training}}


def medusa_settings(num_heads: int = 2, num_layers: int = 1, **training: Any) -> MedusaSettings:
    return MedusaSettings.model_validate(medusa(num_heads, num_layers, **training))


def sampling(temperature: float = 0.0, max_tokens: int = 64, **changes: Any) -> Sampling:
    """Greedy, one answer a prompt; keywords change it."""
    one = [{"temperature": temperature, "share": 1.0}]
    defaults = {"samples": 1, "temperatures": one, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "cut_off": "keep"}
    return Sampling.model_validate({**defaults, "max_tokens": max_tokens, **changes})


def synthesize_settings(sampling: Sampling, **changes: Any) -> Synthesize:
    defaults = {"engine": "transformers", "engine_args": [], "dtype": "float32", "max_model_len": 256}
    return Synthesize(**{**defaults, "max_failed_share": 0.01, "sampling": sampling, **changes})
