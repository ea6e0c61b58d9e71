"""Training a drafter: speed and memory, online and cached, beside what the usual trainers do.

    python -m benchmarks.training eagle3|medusa|eagle [--base models/base] [--data data/synthetic/train.jsonl]
    python -m benchmarks.training eagle3 --hidden 256 --layers 2 --vocab 128000 --rows 1 --length 256 --steps 3

All variants see the same conversations in the same number of optimizer steps, take one pass a step, and share the
loop around the loss (AdamW, clipping). Before anything is timed, the reference's loss and gradients are compared with
specdec's on the same conversations, in float32.

    online      the base runs in every step, over packed rows
    cached      its states come from the disk, as from the second epoch on; what writing them costs is told apart
    reference   shuffled conversations, padded to the longest of the batch; the base runs in every step; the drafter
                runs at every position; the base's distribution over the whole vocabulary is held once, the drafter's
                for every draft position; plain KL and attention (context and own keys concatenated), by autograd

What is not the drafter's is made as cheap for the reference as it goes: the base needs no mask, the context's first
look is fused, no accuracy is counted. Without --base a small Llama of random weights is made on the spot, without
--data there are conversations of random tokens: the median prompt is a tenth of --length, the median answer a
seventh, both lognormal.

Speed is measured in one process, the variants in turn, their order rotated from round to round. Memory is the peak
above what base and drafter take at rest, gradients and AdamW's state included: on a GPU what is allocated there, on a
CPU the resident memory of a fresh process each, to which the cache's mapped files count though the system may take
them back. Linux only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from benchmarks.reference import compare_losses, padded_features, reference_loss
from benchmarks.training_work import Work, fresh_drafter, write_random_base
from specdec.config import METHOD_SECTIONS
from specdec.config.defaults import TRAINING_DEFAULTS
from specdec.drafters import Drafter, Features, medusa, unrolled
from specdec.training.cache import FeatureCache
from specdec.training.features import collate, compute_features

VARIANTS = ("online", "cached", "reference")
MEMORY_STEPS = 3
OUT_OF_MEMORY = "out of memory"

Part = Callable[[str], AbstractContextManager[None]]


def main() -> None:
    options = arguments()
    logging.disable_progress_bar()
    if options.variant:
        set_precision(options)
        print(json.dumps(peak_memory(Work.of(options), options.variant)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        if options.base is None:
            write_random_base(options)
        compare_losses(options)
        set_precision(options)
        work = Work.of(options)
        print(work.told(), flush=True)
        writing = write_cache(work)
        peaks = {name: ask_peak_memory(work, name) for name in VARIANTS}
        able = [name for name in VARIANTS if peaks[name] is not None]
        runs = {name: Run(work, name) for name in able}
        speeds = measure(runs, options)
        print_table(work, speeds, peaks)
        print_writing(work, writing, speeds)
        if options.profile:
            print_profile(work, runs["online"])


def set_precision(options: argparse.Namespace) -> None:
    torch.set_float32_matmul_precision("highest" if options.dtype == "float32" else "high")


class Run:
    """One variant's training: a drafter and an optimizer of its own."""

    def __init__(self, work: Work, name: str):
        self._work, self._name = work, name
        self.drafter = fresh_drafter(work.target, work.settings)
        self._optimizer = torch.optim.AdamW(self.drafter.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        base = compute_features if name == "online" else padded_features
        self._features = partial(base, work.target, aux_layers=self.drafter.aux_layers)
        if name == "cached":
            self._features = open_cache(work, self.drafter).features
        self._half = work.options.dtype == "bfloat16"

    def step(self, number: int, part: Part = lambda _name: nullcontext()) -> None:
        packed = self._name != "reference"
        batch = collate(self._work.packed[number]) if packed else self._work.padded[number]
        with part("base"):
            features = self._features(batch)
        with part("layers"), torch.autocast(features.hidden.device.type, torch.bfloat16, enabled=self._half):
            loss = self.drafter(features).loss if packed else self._reference(features)
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _reference(self, features: Features) -> Tensor:
        return reference_loss(self.drafter, self._work.settings, features)


def open_cache(work: Work, drafter: Drafter) -> FeatureCache:
    """The cache of all rows; it is written where it is not there."""
    return FeatureCache.build(
        work.target,
        work.rows,
        drafter.aux_layers,
        work.options.folder / "cache",
        TRAINING_DEFAULTS["cache_dtype"],
        TRAINING_DEFAULTS["cache_limit_gb"],
        work.options.rows,
        lambda _line: None,
    )


def write_cache(work: Work) -> float:
    """Seconds, after a pass that warms up."""
    drafter = fresh_drafter(work.target, work.settings)
    compute_features(work.target, collate(work.packed[0]), drafter.aux_layers)
    began = time.perf_counter()
    open_cache(work, drafter)
    return time.perf_counter() - began


def measure(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each round of each variant; a round is every step once."""
    for run in runs.values():
        run.step(0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(options.rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            wait_for_gpu()
            began = time.perf_counter()
            for step in range(options.steps):
                runs[name].step(step)
            wait_for_gpu()
            seconds[name].append(time.perf_counter() - began)
        told = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items())
        print(f"round {number + 1} of {options.rounds}: {told}", flush=True)
    return seconds


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---------------------------------------------------------------- memory


def ask_peak_memory(work: Work, name: str) -> float | None:
    """MB; None where memory did not suffice. On a GPU from this process: its allocator counts exactly."""
    on_gpu = work.target.device.type == "cuda"
    found = peak_memory(work, name) if on_gpu else peak_of_a_process(name, work.options.folder)
    print(f"memory: {name} {OUT_OF_MEMORY if found is None else f'{found:,.0f} MB'}", flush=True)
    return found


def peak_of_a_process(name: str, folder: Path) -> float | None:
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--variant", name, "--folder", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode == -9:  # the system's own way to say so
        return None
    if ran.returncode:
        sys.exit(f"{name} failed:\n{ran.stderr[-3000:]}")
    found: float | None = json.loads(ran.stdout.splitlines()[-1])
    return found


def peak_memory(work: Work, name: str) -> float | None:
    """MB above what is held before the first step, over a few steps."""
    options, on_gpu = work.options, work.target.device.type == "cuda"
    run = Run(work, name)
    sum(float(weight.sum()) for weight in work.target.model.parameters())  # reads what is only mapped so far
    if not on_gpu:
        refuse_too_much()
    before = start_peak(on_gpu)
    try:
        for number in range(min(MEMORY_STEPS, options.steps)):
            run.step(number)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(s in str(error) for s in ("allocate", OUT_OF_MEMORY)):
            raise
        return None
    return (read_peak(on_gpu) - before) / 1e6


def refuse_too_much() -> None:
    """An allocation that the machine cannot give fails, instead of whatever the system would end."""
    memory = psutil.Process().memory_info()
    limit = int(memory.vms + 0.9 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def start_peak(on_gpu: bool) -> int:
    """Bytes that are held now; the peak is counted from here on."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def read_peak(on_gpu: bool) -> int:
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


# ---------------------------------------------------------------- telling


def print_table(work: Work, seconds: dict[str, list[float]], peaks: dict[str, float | None]) -> None:
    options = work.options
    device = f"{torch.get_num_threads()} threads" if work.target.device.type == "cpu" else str(work.target.device)
    positions = fresh_drafter(work.target, work.settings).loss_positions
    table = Table(
        title=f"{options.method}, {positions} draft positions, base {work.target.num_layers} x "
        f"{work.target.hidden_size}, {work.target.vocab_size:,} tokens, {options.dtype}, {device}, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    for column in ("variant", "answer tokens/s", "to the reference (least of the rounds)", "peak memory", "padding"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name in VARIANTS:
        peak, padding = peaks[name], f"{work.padding(name):.0%}"
        if peak is None:
            table.add_row(name, "-", "-", OUT_OF_MEMORY, padding)
            continue
        speed = statistics.median(work.answer_tokens / passed for passed in seconds[name])
        table.add_row(name, f"{speed:,.0f}", ratios(seconds, name), f"{peak:,.0f} MB", padding)
    Console(width=110).print(table)
    trained = sum(weight.numel() for weight in fresh_drafter(work.target, work.settings).parameters())
    print(f"of each peak, {trained * 12 / 1e6:,.0f} MB are the drafter's gradients and AdamW's state")


def ratios(seconds: dict[str, list[float]], name: str) -> str:
    """How much faster than the reference: the median over rounds, and the least."""
    if "reference" not in seconds:
        return "-"
    found = [theirs / ours for theirs, ours in zip(seconds["reference"], seconds[name], strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f})"


def print_writing(work: Work, writing: float, seconds: dict[str, list[float]]) -> None:
    """What the cache costs, beside an epoch of `online`."""
    size = sum(file.stat().st_size for file in (work.options.folder / "cache").rglob("*.safetensors"))
    epoch, later = (statistics.median(seconds[name]) for name in ("online", "cached"))
    pays = f"it pays from epoch {int(writing / (epoch - later)) + 1} on" if epoch > later else "it does not pay"
    print(
        f"writing the cache: {writing:.2f} s, {writing / epoch:.0%} of an epoch online ({epoch:.2f} s; cached "
        f"{later:.2f} s): {pays}; {size / 1e6:,.1f} MB in {TRAINING_DEFAULTS['cache_dtype']}"
    )


def print_profile(work: Work, run: Run) -> None:
    clock = Clock()
    calls = [
        (medusa, "head_loss", "output layer and loss, with its gradients"),
        (unrolled, "head_loss", "output layer and loss, with its gradients"),
        (unrolled, "attend_to", "attention"),
        (work.target, "logits", "the base's output layer"),
    ]
    with ExitStack() as stack:
        for owner, name, label in calls:
            stack.enter_context(patch.object(owner, name, clock.timed(label, getattr(owner, name))))
        for number in range(work.options.steps):
            run.step(number, clock.part)
    total = sum(clock.seconds.values())
    table = Table(title=f"online, {work.options.steps} steps")
    for column in ("part", "ms a step", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for label, passed in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        table.add_row(label, f"{1000 * passed / work.options.steps:.1f}", f"{passed / total:.0%}")
    Console(width=100).print(table)


class Clock:
    """Seconds by part; what runs inside another part is taken off it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wait_for_gpu()
        began = time.perf_counter()
        self._inside.append(0.0)
        yield
        wait_for_gpu()
        passed = time.perf_counter() - began
        self.seconds[name] += passed - self._inside.pop()
        self._inside[-1] += passed

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*values, **named)

        return call


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHOD_SECTIONS)
    parser.add_argument("--base", type=Path, help="a folder; default: a random Llama")
    parser.add_argument("--hidden", type=int, default=256, help="of the random Llama, a multiple of --head-size")
    parser.add_argument("--head-size", type=int, default=32, help="of the random Llama")
    parser.add_argument("--layers", type=int, default=4, help="of the random Llama")
    parser.add_argument("--vocab", type=int, default=8192, help="of the random Llama, 262 at least")
    parser.add_argument("--data", type=Path, help="rows with `segments`, or conversations; default: random tokens")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps in a round: the whole data once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2, help="packed rows in a step")
    parser.add_argument("--length", type=int, default=512, help="of a packed row")
    parser.add_argument("--unroll-steps", type=int, help="draft positions (Medusa: heads); default: the method's")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of base and products")
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--profile", action="store_true", help="print where the time of `online` goes")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
