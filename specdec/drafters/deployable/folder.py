"""A drafter's folder and its base's, from the disk: what `specdec check` and the registration hold side by side."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from specdec.drafters.deployable import BaseFacts, findings
from specdec.errors import ModelError
from specdec.targets import identify
from specdec.targets.identity import RECORD
from specdec.targets.loading import first_line
from specdec.targets.target import logit_scale

METHODS = ("medusa", "eagle", "eagle3")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".safetensors.index.json")


def check_folder(folder: Path, base: BaseFacts) -> list[str]:
    """What is wrong with the drafter in `folder`, one line each, the file's whole path first; empty: it is right.

    Raises ModelError where `folder` is none.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder with a drafter")
    found: list[str] = []
    config, record = (_object(folder / name, found) for name in ("config.json", "specdec.json"))
    tensors = _tensors(folder / "model.safetensors", found)
    for file in sorted(folder.iterdir()):
        if file.name.endswith(_WEIGHTS) and file.name != "model.safetensors":
            found.append(f"{file.name} is there, wanted model.safetensors alone: vLLM may load both")
    if config is not None and tensors is not None:
        found += findings(method_of(config, record), config, tensors, record, base)
    return [f"{folder}/{line}" for line in found]


def method_of(config: dict[str, Any], record: dict[str, Any] | None) -> str:
    """As `specdec.json` says, else as config.json looks."""
    said = (record or {}).get("method")
    if said in METHODS:
        return str(said)
    if config.get("model_type") == "medusa":
        return "medusa"
    return "eagle3" if "Eagle3" in str(config.get("architectures")) else "eagle"


def base_facts(folder: Path) -> BaseFacts:
    """The base in `folder`, of which `config.json` is enough: its hashes are then not known. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no base: config.json is missing; name the folder of the model, or of its files"
        )
    try:
        text = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        sizes = {
            "hidden_size": int(text.hidden_size),
            "vocab_size": int(text.vocab_size),
            "num_layers": int(text.num_hidden_layers),
        }
    except Exception as error:  # a broken config raises whatever its reader stumbles over
        raise ModelError(f"{folder}/config.json describes no base model: {first_line(error)}") from error
    whole = (folder / RECORD).exists() or (any(folder.glob("*.safetensors")) and (folder / "tokenizer.json").exists())
    identity = identify(folder).as_dict() if whole else None
    return BaseFacts(
        folder.name, **sizes, logit_scale=logit_scale(text), identity=identity, embedding=lambda: _embedding(folder)
    )


def _embedding(folder: Path) -> Tensor | None:
    """The base's input embedding, where its weights are there under a usual name."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                if name.endswith("embed_tokens.weight"):
                    found: Tensor = opened.get_tensor(name)
                    return found
    return None


def _object(file: Path, found: list[str]) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found.append(f"{file.name} is missing, wanted beside the weights")
        return None
    except (OSError, ValueError) as error:
        found.append(f"{file.name} is damaged, wanted JSON: {error}")
        return None
    if not isinstance(content, dict):
        found.append(f"{file.name} is {type(content).__name__}, wanted a JSON object")
        return None
    return content


def _tensors(file: Path, found: list[str]) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except FileNotFoundError:
        found.append(f"{file.name} is missing, wanted the drafter's weights")
    except (OSError, SafetensorError) as error:
        found.append(f"{file.name} is damaged, wanted safetensors: {error}")
    return None
