"""Settings as params.yaml would state them, small."""

from typing import Any

from specdec.config import Eagle3Settings, EagleSettings, MedusaSettings, Sampling, Synthesize


def training(**changes: Any) -> dict[str, Any]:
    """A drafter's `training` section."""
    defaults = {
        "epochs": 2.0,
        "learning_rate": 1e-3,
        "warmup_share": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 64,
        "rows_per_step": 2,
        "rows_per_pass": 2,
        "save_steps": 5,
        "keep_checkpoints": 2,
        "early_stopping": None,
        "warm_start": None,
        "features": "online",
        "cache_dtype": "float32",
        "cache_limit_gb": 1.0,
        "gradient_checkpointing": False,
        "shard_base": False,
        "dtype": "float32",
        "seed": 0,
    }
    return {**defaults, **changes}


def medusa(num_heads: int = 2, num_layers: int = 1, **changes: Any) -> dict[str, Any]:
    """A Medusa drafter's section; keywords change its `training`."""
    heads = {"num_heads": num_heads, "num_layers": num_layers, "head_decay": 0.8}
    return {
        "method": "medusa",
        **heads,
        "shared_output_layer": False,
        "loss": "cross_entropy",
        "training": training(**changes),
    }


def medusa_settings(num_heads: int = 2, num_layers: int = 1, **changes: Any) -> MedusaSettings:
    return MedusaSettings.model_validate(medusa(num_heads, num_layers, **changes))


def eagle_settings(own: dict[str, Any] | None = None, **changes: Any) -> EagleSettings:
    """`own` changes the drafter's section, keywords its `training`."""
    defaults = {
        "method": "eagle",
        "draft_tokens": 3,
        "num_layers": 1,
        "unroll_steps": 3,
        "unroll_decay": 0.8,
        "loss": "kl",
        "token_weight": 1.0,
        "feature_weight": 1.0,
        "input_noise": 0.0,
        "dimensions": {},
        "training": training(**changes),
    }
    return EagleSettings.model_validate({**defaults, **(own or {})})


def eagle3_settings(own: dict[str, Any] | None = None, **changes: Any) -> Eagle3Settings:
    """`own` changes the drafter's section, keywords its `training`."""
    defaults = {
        "method": "eagle3",
        "draft_tokens": 3,
        "aux_layers": None,
        "unroll_steps": 3,
        "unroll_decay": 0.8,
        "draft_vocab_size": None,
        "loss": "kl",
        "norm_before_residual": False,
        "fc_norm": False,
        "norm_output": False,
        "dimensions": {},
        "training": training(**changes),
    }
    return Eagle3Settings.model_validate({**defaults, **(own or {})})


def sampling(temperature: float = 0.0, max_tokens: int = 64, **changes: Any) -> Sampling:
    """Greedy, one answer a prompt; keywords change it."""
    one = [{"temperature": temperature, "share": 1.0}]
    defaults = {"samples": 1, "temperatures": one, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "cut_off": "keep"}
    return Sampling.model_validate({**defaults, "max_tokens": max_tokens, **changes})


def synthesize_settings(sampling: Sampling, **changes: Any) -> Synthesize:
    defaults = {"engine": "transformers", "engine_args": [], "dtype": "float32", "max_model_len": 256}
    return Synthesize(**{**defaults, "max_failed_share": 0.01, "sampling": sampling, **changes})
