"""What `specdec train` and `specdec.attach` use where nothing is said. `params.yaml` states everything instead."""

from typing import Any

_UNROLLED = {
    "draft_tokens": 3,
    "unroll_decay": 0.8,
    "loss": "kl",
    "dimensions": {},
}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "medusa": {
        "method": "medusa",
        "num_heads": 2,
        "num_layers": 1,
        "shared_output_layer": False,
        "loss": "kl",
        "head_decay": 0.8,
    },
    "eagle": {
        **_UNROLLED,
        "method": "eagle",
        "num_layers": 1,
        "unroll_steps": 3,
        "token_weight": 1.0,
        "feature_weight": 1.0,
        "input_noise": 0.1,
    },
    "eagle3": {
        **_UNROLLED,
        "method": "eagle3",
        "aux_layers": None,
        "unroll_steps": 7,
        "draft_vocab_size": None,
        "norm_before_residual": False,
        "fc_norm": True,
        "norm_output": True,
    },
}
TRAINING_DEFAULTS: dict[str, Any] = {
    "epochs": 1.0,
    "learning_rate": 1e-3,
    "warmup_share": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": 2048,
    "rows_per_step": 8,
    "rows_per_pass": 1,
    "save_steps": 500,
    "keep_checkpoints": 2,
    "early_stopping": None,
    "warm_start": None,
    "features": "online",
    "vllm_args": [],
    "cache_dtype": "bfloat16",
    "cache_limit_gb": 100.0,
    "gradient_checkpointing": False,
    "shard_base": False,
    "dtype": "float32",
    "seed": 0,
}
