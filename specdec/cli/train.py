"""`specdec train`: a drafter for a model and a file of conversations. No pipeline around it.

`OUTPUT.work/` beside the output holds checkpoints (and cached features): the same command goes on from there after an
interruption, and it is removed at the end. The drafter itself appears whole, at the end.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.cli.conversations import split_rows
from specdec.cli.finished import check_same, read_record, warm_start_record
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
    if _is_finished(request, settings):
        if os.environ.get("RANK", "0") == "0":  # of several that were started together
            say(f"{request.output} is finished: trained with these settings on this data; there is nothing to do")
        return

    from transformers import set_seed

    from specdec.drafters import new_drafter
    from specdec.serving.states import vllm_states
    from specdec.targets.fetch import base_folder
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
        for split, (file, found) in split_rows(
            request.data, request.eval_data, request.eval_share, target, tell
        ).items()
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
    base = base_folder(request.model)
    source = vllm_states(target, base, drafter.aux_layers, training, work / "vllm.log", tell)
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
        source,
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
    content = {**defaults, **own, "training": {**TRAINING_DEFAULTS, **request.training}}
    return validated(DRAFTER_SECTIONS[request.mode], content, "command line", _options(request))


def _options(request: Request) -> dict[str, str]:
    """{path of a setting of this drafter: its option}."""
    names = OWN_NAMES[request.mode]
    own = {names.get(name, name): request.options[name] for name in OWN}
    return own | {f"training.{setting}": request.options[name] for name, setting in TRAINING.items()}


def _option_names(request: Request) -> dict[str, str]:
    """{setting: its option}, for errors of what is called with the settings."""
    training = {setting: request.options[name] for name, setting in TRAINING.items()}
    return training | {name: request.options[name] for name in OWN}


def _is_finished(request: Request, settings: Any) -> bool:
    """Raises ConfigError when something else is there."""
    found = read_record(request.output)
    if found is None:
        return False
    from specdec.targets import identify
    from specdec.targets.fetch import base_folder
    from specdec.tracking.checkpoints import exact_address

    asked = settings.model_dump()
    if "max_length" not in request.training:
        del asked["training"]["max_length"]  # the base may have lowered it
    wanted = {
        "base": identify(base_folder(request.model)).as_dict(),
        "data": _data(request),
        "settings": asked,
    }
    if given := settings.training.warm_start:
        wanted["warm_start"] = warm_start_record(given, exact_address(given))
    check_same(request.output, found, wanted, _options(request))
    return True


def _check_files(request: Request) -> None:
    for file in filter(None, (request.data, request.eval_data)):
        if not file.is_file():
            raise DataError(f"{file} is no file: name a file of conversations, or what `specdec synthesize` wrote")
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
