"""What a base model *is*: hashes of its weights, tokenizer and chat template.

A drafter predicts what one base says through one tokenizer and one template; it is refused by any other.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from specdec.errors import ModelError
from specdec.io import sha256_file

RECORD = "specdec.json"  # beside the model's own files: where it came from, and its identity


@dataclass(frozen=True)
class Identity:
    """Hex sha256 each: weights (all shards), tokenizer (`tokenizer.json`), chat template (its text)."""

    weights: str
    tokenizer: str
    chat_template: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def identify(folder: Path) -> Identity:
    """The identity of a checkpoint folder; from its record when `fetch_base` left one, else computed.

    Raises ModelError when the folder is no safetensors checkpoint with a tokenizer.
    """
    record = folder / RECORD
    if record.exists():
        told = json.loads(record.read_text())
        if "identity" not in told:
            raise ModelError(f"{folder} is a {told.get('method')} drafter, and no base: name the model it drafts for")
        return Identity(**told["identity"])
    return compute_identity(folder)


def compute_identity(folder: Path) -> Identity:
    """Hashes the files themselves (reads all weights once)."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not there: name a model's folder, or run the pipeline in this one first")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ModelError(
            f"{folder} holds no *.safetensors: it is no model that can be loaded safely; "
            "convert it with transformers' save_pretrained(safe_serialization=True)"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        raise ModelError(f"{folder} holds no tokenizer.json: save a fast tokenizer beside the model")
    weights = hashlib.sha256("".join(sha256_file(shard) for shard in shards).encode()).hexdigest()
    return Identity(weights, sha256_file(tokenizer), _template_hash(folder))


def identity_of(model: Any, tokenizer: Any) -> Identity:
    """The identity of a model in memory, which has no files: of its tensors instead."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    template = json.dumps(tokenizer.chat_template)
    return Identity(
        digest.hexdigest(),
        hashlib.sha256(vocabulary.encode()).hexdigest(),
        hashlib.sha256(template.encode()).hexdigest(),
    )


def _template_hash(folder: Path) -> str:
    """The chat template's text, from its own file (newer checkpoints) or the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return sha256_file(file)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) if settings.exists() else {}
    return hashlib.sha256(json.dumps(content.get("chat_template")).encode()).hexdigest()
