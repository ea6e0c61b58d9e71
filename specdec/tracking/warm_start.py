"""The drafter that a training goes on from: looked up once, by the first of its processes, and the same for all."""

from dataclasses import dataclass
from pathlib import Path

from specdec.io import sha256_file
from specdec.tracking.checkpoints import drafter_folder, exact_address
from specdec.training.processes import state, told_by_first


@dataclass(frozen=True)
class WarmStart:
    """drafter: the folder as it was given, or `models:/NAME/VERSION`. folder: where it lies."""

    drafter: str
    folder: Path

    def record(self) -> dict[str, str]:
        """For `specdec.json` and the metrics: an alias says nothing once it has moved."""
        return {"drafter": self.drafter, "sha256": sha256_file(self.folder / "model.safetensors")}


def find_warm_start(given: str, into: Path) -> WarmStart:
    """given: the setting. into: where drafters out of the registry are kept, one copy a machine.

    An alias that moves meanwhile cannot give two processes two drafters. Raises TrackingError.
    """
    drafter = told_by_first(lambda: exact_address(given))
    with state().local_main_process_first():
        return WarmStart(drafter, drafter_folder(drafter, into))
