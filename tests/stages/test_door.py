"""The door of a stage: every way out has its line and its exit code."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from specdec.errors import DataError, ServerError
from specdec.io import write_text
from pathlib import Path
import stages

def main():
    what = sys.argv[1]
    if what == "bad": raise DataError("row 3 is bad: mend it")
    if what == "server": raise ServerError("the server died")
    if what == "disk":
        with open("/dev/full", "w") as f: f.write("x" * 100)
    if what == "bug": raise ValueError("a bug")
    if what == "wait":
        try:
            print("waiting", flush=True); time.sleep(60)
        finally:
            Path("closed").touch()

stages.run(main)
"""


def start(what: str, folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("fine", 0, ""),
        ("bad", 2, "specdec: error: row 3 is bad: mend it\n"),
        ("server", 75, "specdec: error: the server died\n"),
        ("disk", 2, "free some space and run the same command again\n"),
    ],
)
def test_ways_out(tmp_path: Path, what: str, code: int, line: str) -> None:
    process = start(what, tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.endswith(line)
    assert err.count("\n") == (1 if line else 0)


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    process = start("bug", tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in err


def test_sigterm_runs_what_must_run_at_the_end(tmp_path: Path) -> None:
    process = start("wait", tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "closed").exists()
    assert "it goes on from here" in err


WRITERS = {
    "text": "from specdec.io import write_text; write_text(Path('small/out'), 'y' * 10**6)",
    "safetensors": "from safetensors.torch import save_file; save_file({'a': torch.zeros(10**6)}, 'small/new')",
    "torch": "torch.save(torch.zeros(10**6), 'small/new')",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_the_old_output(tmp_path: Path, writer: str) -> None:
    """A real file system of 64 KiB, where this machine lets us make one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a file system of our own")
    try:
        (small / "out").write_text("old")
        script = (
            f"import stages, torch\nfrom pathlib import Path\ndef main():\n    {WRITERS[writer]}\nstages.run(main)"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert (small / "out").read_text() == "old"
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", str(small)], check=True)
