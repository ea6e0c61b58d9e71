"""Small random bases of every family that specdec is for, each with what sets its family apart switched on."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny import write_tokenizer

WINDOW = 8  # of every base that attends to a sliding window

_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
}
_SHORT = {"original_max_position_embeddings": 128}  # where LongRoPE turns from short to long factors
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
_ONE_KV_HEAD = {"num_key_value_heads": 1}

# name: (architecture, what its config has that the others' have not)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("LlamaForCausalLM", {"rms_norm_eps": 1e-5}),
    "llama-3": ("LlamaForCausalLM", {**_ONE_KV_HEAD, "eos_token_id": [2, 4]}),
    "llama-3.1": ("LlamaForCausalLM", {**_ONE_KV_HEAD, "rope_parameters": _LLAMA3}),
    "llama-3.2": ("LlamaForCausalLM", {**_ONE_KV_HEAD, "rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**_ONE_KV_HEAD, "sliding_window": WINDOW, "head_dim": 48}),
    "phi-1": ("PhiForCausalLM", {"partial_rotary_factor": 0.5}),
    "phi-2": ("PhiForCausalLM", {"hidden_size": 80, "partial_rotary_factor": 0.4}),
    "phi-qk-layernorm": ("PhiForCausalLM", {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi-3": ("Phi3ForCausalLM", {"sliding_window": WINDOW}),
    "phi-3-longrope": ("Phi3ForCausalLM", {**_SHORT, "rope_parameters": _LONGROPE, "sliding_window": 250}),
    "phi-4-mini": (
        "Phi3ForCausalLM",
        {
            **_ONE_KV_HEAD,
            **_SHORT,
            "tie_word_embeddings": True,
            "rope_parameters": {
                **_LONGROPE,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 12,
                "long_factor": [2.0] * 12,
            },
        },
    ),
    "qwen-1.5": ("Qwen2ForCausalLM", {}),
    "qwen-2": (
        "Qwen2ForCausalLM",
        {**_ONE_KV_HEAD, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen-2.5": ("Qwen2ForCausalLM", {**_ONE_KV_HEAD, "rope_parameters": _YARN, "tie_word_embeddings": True}),
    "qwen-3": ("Qwen3ForCausalLM", {**_ONE_KV_HEAD, "head_dim": 48, "tie_word_embeddings": True}),
    "gemma-2": (
        "Gemma2ForCausalLM",
        {
            **_ONE_KV_HEAD,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma-3": (
        "Gemma3ForCausalLM",
        {
            **_ONE_KV_HEAD,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "pythia": ("GPTNeoXForCausalLM", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
    "olmo-2": ("Olmo2ForCausalLM", {}),
    "granite": (
        "GraniteForCausalLM",
        {
            **_ONE_KV_HEAD,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "cohere": ("CohereForCausalLM", {**_ONE_KV_HEAD, "logit_scale": 0.25, "use_qk_norm": True}),
}


def write_family(folder: Path, family: str, **changes: Any) -> None:
    """Random weights, biases and norms too, so that leaving any of them out shows."""
    architecture, own = FAMILIES[family]
    tokenizer = write_tokenizer(folder)
    model_class = getattr(transformers, architecture)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(1)
    # `rope_parameters` are completed in place
    model = model_class(model_class.config_class(**copy.deepcopy({**settings, **own, **changes})))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter += 0.2 * torch.randn_like(parameter)
        if model.config.tie_word_embeddings:  # or every token would be answered with itself
            model.get_input_embeddings().weight *= 0.2
    model.save_pretrained(folder)
