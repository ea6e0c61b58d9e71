"""Several processes train what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.two_processes import run

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_equal_one_at_the_same_global_batch(base_folder: Path, tmp_path: Path) -> None:
    """The base's layers are spread over the two, whole in the one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).with_name("two_processes.py")), str(base_folder), str(tmp_path / "two"), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    run(str(base_folder), tmp_path / "one", 4, sharded=False)
    one, two = (load_file(tmp_path / name / "drafter" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)
    figures = [json.loads((tmp_path / name / "figures.json").read_text()) for name in ("one", "two")]
    assert figures[1]["told"] == figures[0]["told"] > 0
    assert figures[1]["result"] == pytest.approx(figures[0]["result"], rel=1e-4)
