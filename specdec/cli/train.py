"""`specdec train`: a drafter for a model and a file of conversations. No pipeline around it.

`OUTPUT.work/` beside the output holds checkpoints (and cached features): the same command goes on from there after an
interruption, and it is removed at the end. The drafter itself appears whole, at the end.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.cli.options import OWN, OWN_NAMES, TRAINING, naming_options
from specdec.config import Environment, TrainingSettings, validated
from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.config.schema import DRAFTER_SECTIONS
from specdec.errors import ConfigError, DataError
from specdec.io import sha256_file, sha256_json

Say = Callable[[str], None]

FEATURES, WARM_START = "features", "warm_start"  # folders in OUTPUT.work


@dataclass(frozen=True)
class Request:
    """What the command line asks for. own: parameters of methods; training: settings. Both as far as they are given.

    options: {parameter: its option, as it was typed}.
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
    options: dict[str, str]
    command: list[str]


def train_drafter(request: Request, say: Say) -> None:
    """Raises a SpecdecError, which names options; what was trained so far is kept in OUTPUT.work."""
    with naming_options(_option_names(request)):
        _train(request, say)


def _train(request: Request, say: Say) -> None:
    settings = _settings(request)
    training: TrainingSettings = settings.training
    _check_files(request)

    from transformers import set_seed

    from specdec.drafters import new_drafter
    from specdec.tracking.warm_start import find_warm_start
    from specdec.training import train, warm_start
    from specdec.training.code import deciding_code
    from specdec.training.launch import launch_processes
    from specdec.training.processes import base_device, is_main
    from specdec.training.rows import count_answer_tokens, pack_rows

    launch_processes(request.command, Environment.read().processes)
    tell: Say = say if is_main() else lambda _line: None
    target = _load_base(request.model, training.dtype, base_device(training.shard_base), tell)
    if "max_length" not in request.training:
        training = training.model_copy(update={"max_length": min(training.max_length, target.max_positions)})
        settings = settings.model_copy(update={"training": training})
    rows = {
        split: pack_rows(found, file, split, training.max_length, target, tell)
        for split, (file, found) in _splits(request, target, tell).items()
    }
    counts = count_answer_tokens(rows["train"], target.vocab_size)
    _check_draft_vocabulary(request, counts)
    set_seed(training.seed)
    drafter = new_drafter(target, settings, counts)
    root = request.output.with_name(f"{request.output.name}.work")
    start = find_warm_start(training.warm_start, root / WARM_START) if training.warm_start else None
    if start:
        warm_start(drafter, start.folder)
    provenance = {
        "base": target.identity.as_dict(),
        "data": _data(request),
        "settings": settings.model_dump(),
        **({"warm_start": start.record()} if start else {}),
    }
    work = root / sha256_json([provenance, deciding_code()])[:16]
    result = train(
        target,
        drafter,
        rows["train"],
        rows["validation"],
        training,
        work,
        root / FEATURES,
        lambda _metrics, _step: None,
        tell,
    )
    if is_main():
        drafter.save_pretrained(request.output, provenance | {"validation": result.metrics})
        _remove_work(root, work)
    rates = ", ".join(f"{v:.3f}" for n, v in result.metrics.items() if n.startswith("rate/"))
    tell(f"validation acceptance length {result.metrics['acceptance_length']:.3f}, rates {rates}")
    tell(
        f"{request.output} is ready: specdec generate --base {request.model} --drafter {request.output} 'A question?'"
    )


def _remove_work(root: Path, work: Path) -> None:
    """Ours alone: what else lies there stays."""
    for folder in (work, root / FEATURES, root / WARM_START):
        shutil.rmtree(folder, ignore_errors=True)
    if not any(root.iterdir()):
        root.rmdir()


def _settings(request: Request) -> Any:
    if request.mode not in METHOD_DEFAULTS:
        raise ConfigError(f"--mode {request.mode!r}: choose one of {', '.join(METHOD_DEFAULTS)}")
    defaults, names = METHOD_DEFAULTS[request.mode], OWN_NAMES[request.mode]
    unknown = sorted(name for name in request.own if names.get(name, name) not in defaults)
    if unknown:
        named = ", ".join(request.options[name] for name in unknown)
        raise ConfigError(f"{named}: not an option of --mode {request.mode}")
    own = {names.get(name, name): value for name, value in request.own.items()}
    options = {names.get(name, name): request.options[name] for name in request.own}
    options |= {f"training.{setting}": request.options[name] for name, setting in TRAINING.items()}
    content = {**defaults, **own, "training": {**TRAINING_DEFAULTS, **request.training}}
    return validated(DRAFTER_SECTIONS[request.mode], content, "command line", options)


def _option_names(request: Request) -> dict[str, str]:
    """{setting: its option}, for errors of what is called with the settings."""
    training = {setting: request.options[name] for name, setting in TRAINING.items()}
    return training | {name: request.options[name] for name in OWN}


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


def _data(request: Request) -> dict[str, Any]:
    """What the rows of both splits come from."""
    files = {"train": request.data, "validation": request.eval_data}
    found: dict[str, Any] = {split: {"file": f.name, "sha256": sha256_file(f)} for split, f in files.items() if f}
    return {"validation": {"share": request.eval_share}, **found}


def _check_draft_vocabulary(request: Request, counts: Any) -> None:
    size, seen = request.own.get("draft_vocab_size"), int((counts > 0).sum())
    if size and seen < size < len(counts):
        raise ConfigError(
            f"--draft-vocab-size {size}: the answers of {request.data} hold {seen} different tokens only: "
            f"ask for {seen} at most, or leave it out"
        )


def _splits(request: Request, target: Any, say: Say) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """{split: (its file, rows)}."""
    file, rows = str(request.data), _read(request.data, target, say)
    if request.eval_data:
        found = _read(request.eval_data, target, say)
        return {"train": (file, rows), "validation": (str(request.eval_data), found)}
    split: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in rows:
        place = int(hashlib.sha256(_opening(row).encode(errors="surrogatepass")).hexdigest()[:12], 16) / 16**12
        split["validation" if place < request.eval_share else "train"].append(row)
    for name, part in split.items():
        if not part:
            raise DataError(
                f"{file}: of {len(rows)} conversations, split by their first question, none is left for {name}: name "
                "--eval-data, or set --eval-share"
            )
    return {name: (file, part) for name, part in split.items()}


def _opening(row: dict[str, Any]) -> str:
    """What decides the split: conversations that begin with the same question sit on one side."""
    asked = (m["content"] for m in row.get("messages") or [] if m["role"] == "user")
    return next(asked, json.dumps(row["segments"][0]["prompt_token_ids"]))


def _read(file: Path, target: Any, say: Say) -> list[dict[str, Any]]:
    """Rows with `segments`: the file's own, or what the chat template makes of its conversations."""
    from specdec.data.conversations import RowCount, read_conversations
    from specdec.data.rendering import render

    if _has_segments(file):
        return list(_token_rows(file, target))
    count = RowCount()
    rows = list(render(target.tokenizer, read_conversations(file, count), target.stop_ids))
    bad = ", ".join(f"{n} x {kind}" for kind, n in count.bad.most_common())
    left = f" ({bad})" if bad else ""
    if not rows:
        raise DataError(
            f"{file} has no answers in its {count.rows} rows{left}: let the base give some with `specdec synthesize`"
        )
    say(f"{file}: {count.rows} rows{left}, {len(rows)} conversations with answers, rendered by the chat template")
    return rows


def _has_segments(file: Path) -> bool:
    """Whether the first row has token ids."""
    from specdec.data.conversations import BadRow, load_row
    from specdec.data.rows import read_rows

    first = next((row for _, row in read_rows(file)), b"")
    try:
        return "segments" in load_row(first)
    except BadRow:
        return False


def _token_rows(file: Path, target: Any) -> Iterator[dict[str, Any]]:
    """The rows that have an answer. Raises DataError for one that `specdec synthesize` could not have written."""
    from specdec.data.conversations import BadRow, load_row
    from specdec.data.rows import read_rows

    for number, line in read_rows(file):
        try:
            row = load_row(line)
        except BadRow as error:
            raise DataError(f"{file}: row {number} is {error}: it is cut short or damaged, make it again") from None
        if not _is_token_row(row):
            raise DataError(f"{file}: row {number} has no `segments` of token ids, as the first has: make it again")
        answered_by = row.get("base")
        if isinstance(answered_by, dict) and answered_by.get("weights") not in (None, target.identity.weights):
            raise DataError(
                f"{file}: row {number} was answered by another base ({str(answered_by['weights'])[:12]}) than "
                f"{target.name} ({target.identity.weights[:12]}): let this one answer, with `specdec synthesize`"
            )
        if row["segments"]:
            yield row


def _is_token_row(row: dict[str, Any]) -> bool:
    segments, messages = row.get("segments"), row.get("messages") or []
    parts = ("prompt_token_ids", "token_ids")
    return (
        isinstance(segments, list)
        and all(isinstance(s, dict) and all(_are_ids(s.get(part)) for part in parts) for s in segments)
        and isinstance(messages, list)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
        and all(isinstance(m["content"], str) for m in messages)
    )


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and {*map(type, value)} <= {int}
        and min(value, default=0) >= 0
        and max(value, default=0) < 2**31
    )
