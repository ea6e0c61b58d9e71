"""Milliseconds of one pass of a base over a few tokens behind a context, interleaved in one process.

    python -m benchmarks.passes [--base models/base] [--dtype float32] [--context 100 700] [--tokens 1 2 4 8 13]

"transformers": the model as it is loaded, with a DynamicCache. "decoding": as decoding has it, with a cache that is
written in place (`specdec/targets/growing_cache.py`) and, on a CPU, weights laid out for a few tokens (`packed.py`)
and keys and values that are not repeated under a mask. Medians over `--rounds`, in which the ways take turns.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import Cache, DynamicCache

from specdec.targets import Target

FORCE_GQA = {"transformers": "0", "decoding": "1"}  # by way: what transformers reads from its environment variable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--context", type=int, nargs="+", default=[100, 700])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 13])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    ways = {name: Target.from_pretrained(options.base, dtype=options.dtype) for name in FORCE_GQA}
    table = Table(title=f"{options.base.name}, {options.dtype}, {torch.get_num_threads()} threads: ms a pass")
    for column in ("context", "way", *(f"{n} tokens" for n in options.tokens)):
        table.add_column(column, justify="right")
    for context in options.context:
        longest = ways["decoding"].max_positions
        if context + max(options.tokens) > longest:
            print(f"{options.base.name} takes {longest} tokens: no passes behind {context}")
            continue
        for name, times in measure(ways, context, options.tokens, options.rounds).items():
            table.add_row(str(context), name, *(f"{1000 * statistics.median(times[n]):.2f}" for n in options.tokens))
    Console(width=100).print(table)


@torch.inference_mode()
def measure(
    ways: dict[str, Target], context: int, tokens: list[int], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Seconds, by way and number of tokens."""
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in tokens} for name in ways}
    caches: dict[str, Cache] = {"transformers": DynamicCache(), "decoding": ways["decoding"].new_cache()}
    for name, target in ways.items():
        target.forward(torch.arange(context, device=target.device)[None] % target.vocab_size, cache=caches[name])
    for i in range(rounds + 3):
        for n in tokens:
            for name, target in ways.items():
                ids = torch.arange(i, i + n, device=target.device)[None] % target.vocab_size
                if target.device.type == "cpu":
                    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = FORCE_GQA[name]
                began = time.perf_counter()
                target.logits(target.forward(ids, cache=caches[name]).hidden).argmax(-1).tolist()
                taken = time.perf_counter() - began
                target.crop(caches[name], context)
                if i >= 3:
                    found[name][n].append(taken)
    return found


if __name__ == "__main__":
    main()
