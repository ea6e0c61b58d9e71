"""Decoding speed, interleaved in one process: our plain loop, our loop with the drafter, transformers' `generate`.

    python -m benchmarks.decoding [--base models/base] [--drafter models/drafters/medusa] [--prompts 32]

Prints tokens/s, the ratio to our plain loop, and milliseconds a pass of the base. Greedy, float32.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from specdec.data.prompts import prompt_ids
from specdec.decoding import generate
from specdec.drafters import load_drafter
from specdec.io import read_jsonl
from specdec.targets import Target

# One decoding of a prompt: (tokens, passes of the base).
Decode = Callable[[list[int]], tuple[int, int]]


def main() -> None:
    options = arguments()
    target = Target.from_pretrained(options.base)
    drafter = load_drafter(options.drafter, target)
    rows = list(read_jsonl(options.data))[: options.prompts]
    prompts = [prompt_ids(target.tokenizer, row["messages"]) for row in rows]

    def ours(with_drafter: bool) -> Decode:
        def decode(ids: list[int]) -> tuple[int, int]:
            made = generate(target, drafter if with_drafter else None, ids, options.max_new_tokens)
            return len(made.token_ids), made.steps + 1

        return decode

    def theirs(ids: list[int]) -> tuple[int, int]:
        prompt = torch.tensor([ids], device=target.device)
        made = target.model.generate(prompt, max_new_tokens=options.max_new_tokens, do_sample=False)
        count = made.shape[1] - len(ids)
        return count, count

    found = measure({"plain": ours(False), "with the drafter": ours(True), "transformers": theirs}, prompts)
    print_table(found, len(prompts))


def measure(ways: dict[str, Decode], prompts: list[list[int]]) -> dict[str, tuple[float, int, int]]:
    """(seconds, tokens, passes) of each way over all prompts; every prompt goes through all ways in turn."""
    for decode in ways.values():
        decode(prompts[0])
    totals = dict.fromkeys(ways, (0.0, 0, 0))
    for ids in prompts:
        for name, decode in ways.items():
            began = time.perf_counter()
            tokens, passes = decode(ids)
            seconds, before, steps = totals[name]
            totals[name] = (seconds + time.perf_counter() - began, before + tokens, steps + passes)
    return totals


def print_table(found: dict[str, tuple[float, int, int]], prompts: int) -> None:
    table = Table(title=f"Greedy decoding of {prompts} prompts, float32, {torch.get_num_threads()} threads")
    for column in ("way", "tokens/s", "to plain", "ms a pass"):
        table.add_column(column, justify="left" if column == "way" else "right")
    plain = found["plain"][1] / found["plain"][0]
    for name, (seconds, tokens, passes) in found.items():
        speed = tokens / seconds
        table.add_row(name, f"{speed:.0f}", f"{speed / plain:.2f}", f"{1000 * seconds / passes:.2f}")
    Console(width=100).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--drafter", type=Path, default=Path("models/drafters/medusa"))
    parser.add_argument("--data", type=Path, default=Path("data/prompts/test.jsonl"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    return parser.parse_args()


if __name__ == "__main__":
    main()
