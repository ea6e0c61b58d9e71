"""A folder with `config.json` and safetensors, whoever wrote it: what it says and holds, read on demand."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from specdec.drafters import Drafter
from specdec.errors import ModelError
from specdec.export.content import Content, Paths
from specdec.targets import Target

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAPS = ("d2t", "t2d")  # the tensors that hold no weights


@dataclass(frozen=True)
class Checkpoint:
    """config: `config.json`. files: the safetensors file of each tensor, by the tensor's name."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, Path]

    def tensors(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The tensors of these names, or all. Raises ModelError for damaged files and quantised weights."""
        wanted = set(self.files if names is None else names)
        found = {}
        try:
            for file in sorted({self.files[name] for name in wanted}):
                with safe_open(file, framework="pt") as opened:
                    found.update({n: opened.get_tensor(n) for n in sorted(wanted) if self.files[n] == file})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} is damaged ({error}): download the drafter again") from None
        for name, tensor in found.items():
            if name not in MAPS and (not tensor.is_floating_point() or tensor.itemsize < 2):
                raise ModelError(
                    f"{self.folder} is quantised ({name} is {str(tensor.dtype).removeprefix('torch.')}): "
                    "take the drafter in bfloat16 or float32"
                )
        return found


@dataclass(frozen=True)
class Layout:
    """One way to lay out a drafter. name: for people; option: on the command line. read, write: raise ModelError."""

    name: str
    option: str
    recognises: Callable[[Checkpoint], bool]
    read: Callable[[Checkpoint, Target], Drafter]
    write: Callable[[Drafter, Paths], Content] | None = None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the configuration and the names of the tensors. Raises ModelError when the folder holds no such thing."""
    config = read_object(folder / "config.json", folder)
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantised (quantization_config): take the drafter in bfloat16 or float32")
    return Checkpoint(folder, config, _files(folder))


def stored_dtype(folder: Path) -> str:
    """The type in which the weights lie there, as `Target.from_pretrained` takes it; float32 where they differ."""
    found = open_checkpoint(folder)
    kinds = set()
    for file in set(found.files.values()):
        with safe_open(file, framework="pt") as opened:
            kinds |= {opened.get_slice(name).get_dtype() for name in set(opened.keys()) - set(MAPS)}
    narrow = {"BF16": "bfloat16", "F16": "float16"}
    return narrow.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def read_object(file: Path, folder: Path) -> dict[str, Any]:
    """The JSON object in a file of the drafter's folder."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no drafter: {file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is damaged ({error}): download the drafter again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file} is damaged: it must be a JSON object")
    return content


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor: as the index says, or the one safetensors file."""
    if (folder / INDEX).exists():
        return _sharded(folder)
    found = sorted(folder.glob("*.safetensors"))
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not found and pickles:
        raise ModelError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code and is never loaded: convert "
            "it to model.safetensors with safetensors.torch.save_file"
        )
    if not found:
        raise ModelError(f"{folder} is no drafter: model.safetensors is missing")
    if len(found) > 1:
        named = ", ".join(file.name for file in found[:4])
        raise ModelError(f"{folder} holds {len(found)} safetensors files ({named}) and no {INDEX} that joins them")
    return dict.fromkeys(_names(found[0]), found[0])


def _sharded(folder: Path) -> dict[str, Path]:
    listed = read_object(folder / INDEX, folder).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(n, str) and Path(n).name == n for n in listed.values()):
        raise ModelError(f"{folder / INDEX} is damaged: weight_map must give each tensor a file of this folder")
    files = {name: folder / file for name, file in listed.items()}
    held = {file: _names(file) for file in sorted(set(files.values()))}
    differing = {n for n, f in files.items() if n not in held[f]} | set().union(*held.values()) - files.keys()
    if differing:
        raise ModelError(f"{folder / INDEX} and its files differ in {min(differing)}: download the drafter again")
    return files


def _names(file: Path) -> set[str]:
    if not file.exists():
        raise ModelError(f"{file.parent} is incomplete: {file.name} is missing")
    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} is damaged ({error}): download the drafter again") from None


def whole_number(config: dict[str, Any], key: str, where: Path, default: int | None = None) -> int:
    """config[key], at least 1; `default` where it is missing or null. Raises ModelError."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        said = "is missing" if value is None else f"is {value!r}, and must be a whole number from 1"
        raise ModelError(f"{where}/config.json: {key} {said}")
    return value
