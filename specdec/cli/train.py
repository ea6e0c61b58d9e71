"""`specdec train`: a drafter for a model and a file of conversations. No pipeline around it.

`OUTPUT.work/` beside the output holds checkpoints (and cached features): the same command goes on from there after an
interruption, and it is removed at the end. The drafter itself appears whole, at the end.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.config import Environment, TrainingSettings, validated
from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.config.schema import DRAFTER_SECTIONS
from specdec.errors import ConfigError, DataError
from specdec.io import read_jsonl, sha256_file, sha256_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for. own, training: settings that differ from the defaults.

    eval_data: conversations for validation; None holds some of `data` back, by a hash of their first question.
    """

    model: str
    data: Path
    eval_data: Path | None
    eval_share: float
    mode: str
    output: Path
    own: dict[str, Any]
    training: dict[str, Any]
    command: list[str]


def train_drafter(request: Request, say: Say) -> None:
    """Raises a SpecdecError; what was trained so far is kept in OUTPUT.work."""
    settings = _settings(request)
    training: TrainingSettings = settings.training
    _check_files(request)

    from specdec.drafters import new_drafter
    from specdec.training import train
    from specdec.training.processes import is_main, launch_processes, training_device
    from specdec.training.rows import count_answer_tokens, pack_rows

    launch_processes(request.command, Environment.read().processes)
    tell: Say = say if is_main() else lambda _line: None
    target = _load_base(request.model, training.dtype, str(training_device()), tell)
    rows = {
        split: pack_rows(found, str(request.data), split, training.max_length, target, tell)
        for split, found in _splits(request, target, tell).items()
    }
    drafter = new_drafter(target, settings, count_answer_tokens(rows["train"], target.vocab_size))
    provenance = {
        "base": target.identity.as_dict(),
        "data": {"file": request.data.name, "sha256": sha256_file(request.data)},
        "settings": settings.model_dump(),
    }
    root = request.output.with_name(f"{request.output.name}.work")
    work = root / sha256_json([provenance, request.eval_share, str(request.eval_data)])[:16]
    work.mkdir(parents=True, exist_ok=True)
    result = train(
        target,
        drafter,
        rows["train"],
        rows["validation"],
        training,
        work,
        root / "features",
        lambda _metrics, _step: None,
        tell,
    )
    if is_main():
        drafter.save_pretrained(request.output, provenance | {"validation": result.metrics})
        shutil.rmtree(root)
    rates = ", ".join(f"{v:.3f}" for n, v in result.metrics.items() if n.startswith("rate/"))
    tell(f"{request.output}: validation acceptance length {result.metrics['acceptance_length']:.3f}, rates {rates}")


def _settings(request: Request) -> Any:
    if request.mode not in METHOD_DEFAULTS:
        raise ConfigError(f"--mode {request.mode!r}: choose one of {', '.join(METHOD_DEFAULTS)}")
    defaults = METHOD_DEFAULTS[request.mode]
    unknown = sorted(request.own.keys() - defaults.keys())
    if unknown:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        raise ConfigError(f"{options}: not an option of --mode {request.mode}")
    training = {**TRAINING_DEFAULTS, **request.training}
    return validated(
        DRAFTER_SECTIONS[request.mode], {**defaults, **request.own, "training": training}, "command line"
    )


def _check_files(request: Request) -> None:
    for file in filter(None, (request.data, request.eval_data)):
        if not file.is_file():
            raise DataError(f"{file} is no file: name a file of conversations, or what `specdec synthesize` wrote")
    if request.output.exists():
        raise ConfigError(f"{request.output} is there already: delete it, or name another folder with --output-dir")
    if not request.output.absolute().parent.is_dir():
        raise ConfigError(f"{request.output} cannot be written: name a folder in one that is there")


def _load_base(model: str, dtype: str, device: str, say: Say) -> Any:
    from specdec.targets import Target
    from specdec.targets.fetch import base_folder

    say(f"loading {model}")
    return Target.from_pretrained(base_folder(model), dtype=dtype, device=device)


def _splits(request: Request, target: Any, say: Say) -> dict[str, list[dict[str, Any]]]:
    rows = _read(request.data, target, say)
    if request.eval_data:
        return {"train": rows, "validation": _read(request.eval_data, target, say)}
    split: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in rows:
        place = int(hashlib.sha256(_first_question(row).encode()).hexdigest()[:12], 16) / 16**12
        split["validation" if place < request.eval_share else "train"].append(row)
    for name, found in split.items():
        if not found:
            raise DataError(f"{request.data}: its {len(rows)} conversations leave none for {name}: name --eval-data")
    return split


def _first_question(row: dict[str, Any]) -> str:
    return next((m["content"] for m in row["messages"] if m["role"] == "user"), "")


def _read(file: Path, target: Any, say: Say) -> list[dict[str, Any]]:
    """Rows with `segments`: the file's own, or what the chat template makes of its conversations."""
    from specdec.data.conversations import RowCount, read_conversations
    from specdec.data.rendering import render

    if _has_segments(file):
        return list(read_jsonl(file))
    count = RowCount()
    rows = list(render(target.tokenizer, read_conversations(file, count), target.stop_ids))
    say(f"{file}: {count.rows} rows, {len(rows)} conversations with answers, rendered by the chat template")
    return rows


def _has_segments(file: Path) -> bool:
    with file.open() as lines:
        return '"segments"' in lines.readline()
