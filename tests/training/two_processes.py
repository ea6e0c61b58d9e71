"""Trains a few steps; run under `torchrun` by test_processes.py, which compares the weights."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from specdec.drafters import new_drafter
from specdec.errors import ConfigError
from specdec.targets import Target
from specdec.training import train
from specdec.training.processes import is_main, state, told_by_first, training_device
from tests.settings import eagle3_settings
from tests.training.test_train import rows


def _refuse() -> str:
    raise ConfigError(f"refused by {state().process_index}")


def run(base: str, out: Path, rows_per_pass: int, sharded: bool) -> None:
    """Writes the last weights and the validation figures of eight steps of four rows."""
    target = Target.from_pretrained(base, device=str(training_device()))
    assert told_by_first(lambda: f"said by {state().process_index}") == "said by 0"
    with pytest.raises(ConfigError, match="refused by 0"):
        told_by_first(_refuse)
    chosen = eagle3_settings(
        epochs=3.0, rows_per_step=4, rows_per_pass=rows_per_pass, save_steps=6, shard_base=sharded
    )
    torch.manual_seed(2)
    drafter = new_drafter(target, chosen)
    said: list[dict[str, float]] = []
    assert len(rows(17, 1)) == 5  # packed: no equal shares for two processes, in passes of two
    result = train(
        target,
        drafter,
        rows(30),
        rows(17, 1),
        chosen.training,
        out,
        out,
        lambda m, _s: said.append(m),
        lambda _: None,
    )
    if sharded:  # nothing of the base is left gathered
        assert all(isinstance(p, DTensor) for layer in target.decoder_layers for p in layer.parameters())
    if is_main():
        drafter.save_pretrained(out / "drafter")
        (out / "figures.json").write_text(json.dumps({"result": result.metrics, "told": len(said)}))
    else:
        assert not said


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sharded=True)
