"""Which checkpoint a killed training goes on from.

The Trainer writes a checkpoint file by file. When the last file is on the disk we add a mark; a folder without it
was torn by a kill and is removed before resuming.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from specdec.io import sync, write_text

_MARK = "complete"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint after its last file is written and synced."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            for file in folder.iterdir():
                sync(file)
            write_text(folder / _MARK, "")


def last_complete(work: Path, say: Callable[[str], None]) -> str | None:
    """The newest whole checkpoint of a work folder; torn ones are removed, with a line that says so."""
    found = {}
    for folder in work.glob("checkpoint-*"):
        if not (folder / _MARK).exists():
            say(f"{folder.name} was torn by an interruption: ignored")
            shutil.rmtree(folder)
        elif match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            found[int(match[1])] = folder
    return str(found[max(found)]) if found else None
