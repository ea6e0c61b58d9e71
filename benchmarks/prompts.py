"""Preparing many prompts on a small machine: speed and memory of the stage `prepare_prompts`, in a fresh process.

    python -m benchmarks.prompts [--rows 20000 100000 1000000] [--base models/base]

Makes rows like Daring-Anteater's (about 2 kB; 2 % exact duplicates, 1 % near ones, some unusable) in a temporary
folder, and prints rows/s and the peak of the process's memory. `anonymous` is what it needs; `resident` also counts
the pages of memory-mapped files, which the system takes back when something else needs the memory. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from specdec.io import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 1000  # rows made at a time


@dataclass(frozen=True)
class Run:
    """Sizes in MB."""

    rows: int
    file: float
    seconds: float
    anonymous: float
    resident: float


def main() -> None:
    options = arguments()
    table = Table(title=f"prepare_prompts, {os.cpu_count()} cores, tokenizer of {options.base}")
    for column in ("rows", "file, MB", "seconds", "rows/s", "anonymous, MB", "resident, MB"):
        table.add_column(column, justify="right")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            run = prepare(Path(folder), rows, options.base.resolve())
        cells = (run.rows, run.file, run.seconds, run.rows / run.seconds, run.anonymous, run.resident)
        table.add_row(*(f"{cell:,.0f}" for cell in cells))
    Console(width=100).print(table)


def prepare(project: Path, rows: int, base: Path) -> Run:
    """One run of the stage on `rows` rows, in a project of its own."""
    raw = project / "data" / "raw" / "train.jsonl"
    write_jsonl(raw, conversations(rows))
    (project / "models").mkdir()
    (project / "models" / "base").symlink_to(base)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prepare_prompts"] |= {
        "max_train": None,
        "max_validation": 500,
        "max_test": 160,
        "max_prompt_tokens": 1024,
    }
    params["synthesize"]["max_model_len"] = 2048
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    began = time.perf_counter()
    command = [sys.executable, "-m", "stages.prepare_prompts"]
    process = subprocess.Popen(command, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)})
    anonymous, resident = watch(process)
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        sys.exit(f"the stage failed with {process.returncode}")
    return Run(rows, raw.stat().st_size / 1e6, seconds, anonymous, resident)


def watch(process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """The peaks of anonymous and of all resident memory, in MB, until the process ends."""
    peaks = (0.0, 0.0)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now = [int(lines[key].split()[0]) / 1e3 for key in ("RssAnon", "VmRSS") if key in lines]
        if now:  # a zombie has none
            peaks = max(peaks[0], now[0]), max(peaks[1], now[1])
        time.sleep(0.05)
    return peaks


def conversations(rows: int) -> Iterator[Any]:
    """Rows of one to three turns of Python's documentation, shuffled; some stand twice, nearly so, or are broken."""
    random = np.random.default_rng(0)
    words = np.array(" ".join(topics.values()).split(), dtype=object)
    for _ in range(0, rows, BLOCK):
        block: list[Any] = []
        for kind in random.random(min(BLOCK, rows)):
            if block and kind < 0.03:
                again = block[int(random.integers(len(block)))]
                block.append(again if kind < 0.02 else changed(again))
            elif kind < 0.031:
                block.append({"conversations": []})
            else:
                sizes = random.geometric(1 / 60, 2 * int(random.integers(1, 4)))
                drawn = words[random.integers(len(words), size=sizes.sum())]
                block.append(row([" ".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]))
        yield from block


def row(turns: list[str]) -> dict[str, Any]:
    talk = [{"from": ("User", "Assistant")[i % 2], "value": turn, "label": None} for i, turn in enumerate(turns)]
    system = "You are a helpful assistant." if len(turns[0]) % 3 == 0 else ""
    return {"system": system, "mask": "User", "dataset": f"kind{len(turns)}", "conversations": talk}


def changed(row: dict[str, Any]) -> dict[str, Any]:
    """The same with a word before it."""
    turns = [{**turn, "value": f"Please {turn['value']}"} for turn in row["conversations"]]
    return {**row, "conversations": turns}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
