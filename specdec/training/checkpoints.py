"""Which checkpoint a killed training goes on from.

The Trainer writes a checkpoint file by file. When the last file is on the disk we add a mark; a folder without it
was torn by a kill and is removed before resuming.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainerState

from specdec.io import sync, write_text
from specdec.training.processes import state as this_process

_MARK = "complete"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint after its last file is written and synced; only then are older ones removed.

    keep: the last ones that stay, beside the best one.
    """

    def __init__(self, keep: int):
        self._keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        this_process().wait_for_everyone()  # each process writes its own random states
        if state.is_world_process_zero and folder.is_dir():
            for file in folder.iterdir():
                sync(file)
            write_text(folder / _MARK, "")
            self._remove_old(folder.parent, state.best_model_checkpoint)

    def _remove_old(self, work: Path, best: str | None) -> None:
        whole = sorted((str(f) for f in work.glob("checkpoint-*") if (f / _MARK).exists()), key=step_of)
        for old in whole[: -self._keep]:
            if Path(old).name != Path(best or old).name or not best:
                shutil.rmtree(old)


def last_complete(work: Path, say: Callable[[str], None]) -> str | None:
    """The newest whole checkpoint of a work folder; torn ones are removed, with a line that says so."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / _MARK).exists():
            whole.append(str(folder))
        else:
            say(f"{folder.name} was torn by an interruption: ignored")
            shutil.rmtree(folder)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: str) -> int:
    """`.../checkpoint-40` -> 40."""
    return int(checkpoint.rpartition("-")[2])


def load_best(drafter: nn.Module, last: Path) -> None:
    """Loads the best checkpoint that the last one of a finished training names."""
    best = TrainerState.load_from_json(str(last / "trainer_state.json")).best_model_checkpoint
    # By its name alone: the folder may have been moved since.
    drafter.load_state_dict(load_file(last.with_name(Path(best or last).name) / "model.safetensors"))
