"""A base's folder becomes a model and a tokenizer, or one line says why not. safetensors only, no remote code."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from specdec.errors import ModelError


def files_of(name: str) -> Path | None:
    """The folder that a loaded model came from: a local one, or the hub cache's."""
    if not name:
        return None
    try:
        config = Path(name) / "config.json" if Path(name).is_dir() else try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # no name that the hub could have
        return None
    folder = Path(config).parent if isinstance(config, str | Path) else None
    return folder if folder and any(folder.glob("*.safetensors")) else None


def load_tokenizer(folder: Path) -> Any:
    """The folder's fast tokenizer; raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file raises whatever its reader stumbles over, a bare Exception too
        raise ModelError(f"{folder} holds no tokenizer that transformers can load: {first_line(error)}") from error


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint's model, every weight of it from the file. Raises ModelError."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a broken config or weight file raises whatever its reader stumbles over
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {_why(error)}") from error
    wrong = sorted(map(str, {*told["missing_keys"], *told["mismatched_keys"]}))
    if wrong:  # transformers fills them in at random
        raise ModelError(
            f"{folder} is no complete causal language model: {len(wrong)} weights that its config.json asks for are "
            f"missing or of another shape ({', '.join(wrong[:3])}); fetch it again, or choose another base"
        )
    return model


def _why(error: Exception) -> str:
    if isinstance(error, SafetensorError):
        return f"its weights are cut short, damaged or a Git LFS pointer; fetch them again ({first_line(error)})"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's text, for one-line messages."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
