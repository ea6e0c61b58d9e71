"""Other work on the machine while decoding is timed. It makes every time longer, and not all by the same factor:
threads that wait for one that was put aside hold up a pass over many tokens more than one over a single token."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

SHORTEST = 1.0  # seconds; the kernel counts in hundredths


@contextmanager
def watch_neighbours(device: torch.device, notes: list[str]) -> Iterator[None]:
    """Appends a line to `notes` where other processes took cores that the timed work within needed."""
    began, all_then, own_then = time.monotonic(), _busy(), _own()
    yield
    seconds = time.monotonic() - began
    if seconds >= SHORTEST:
        others = max(0.0, (_busy() - all_then) - (_own() - own_then)) / seconds
        line = told(others, psutil.cpu_count() or 1, torch.get_num_threads() if device.type == "cpu" else 1)
        notes += [line] if line else []


def told(others: float, cores: int, threads: int) -> str | None:
    """others: cores that other processes kept busy. threads: that the timed work runs in. None: they had room."""
    if others <= max(0, cores - threads) + 0.1 * threads:
        return None
    return (
        f"other processes kept {others:.1f} of {cores} cores busy while decoding was timed: seconds, tokens/s and "
        "speedups are those of a busy machine (acceptance is not touched)"
    )


def _busy() -> float:
    """Core seconds of the whole machine since it was started, those that a hypervisor kept for itself too."""
    now = psutil.cpu_times()
    return sum(getattr(now, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own() -> float:
    now = psutil.Process().cpu_times()
    return now.user + now.system
