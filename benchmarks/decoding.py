"""Decoding speed, interleaved in one process: ours with and without the drafter, and transformers' `generate`.

    python -m benchmarks.decoding [--base models/base] [--drafter models/drafters/medusa] [--prompts 32]
                                  [--tree 4,3,12] [--draft-model DIR] [--compiled]

Greedy. The first table: tokens/s, the ratio to our plain loop, tokens and milliseconds a pass. "transformers"
is its plain loop, its prompt lookup, and (--draft-model) its assisted generation with that small model, which ours is
given too (`python -m benchmarks.draft_model` makes one). --compiled: passes of fixed shapes, compiled, beside them.
The second table: where a step of ours goes, behind the prompt: drafting, the base's pass, and the rest (choosing,
verifying, rolling back, Python), with the bound `acceptance length / (1 + drafting / a plain step)` and what is
reached of it. The prompt is read by base and drafter once, whoever decodes: their first calls are left out.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from specdec.data.prompt_files import read_prompt_file
from specdec.data.prompts import prompt_ids
from specdec.decoding import generate
from specdec.drafters import Proposer, Shape
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.prompt_lookup import PromptLookup
from specdec.drafters.trees import parse_tree
from specdec.export import load_any
from specdec.targets import Target

PLAIN = "plain"


@dataclass
class Total:
    """Over all prompts. reading: seconds for the prompts; base, drafting: within them, behind the prompts."""

    seconds: float = 0.0
    tokens: int = 0
    passes: int = 0
    reading: float = 0.0
    base: float = 0.0
    drafting: float = 0.0
    answers: list[list[int]] = field(default_factory=list)


# One decoding of a prompt: (the answer's token ids, passes of the base; 0 where it is not known).
Decode = Callable[[list[int]], tuple[list[int], int]]


def main() -> None:
    options = arguments()
    target = Target.from_pretrained(options.base, dtype=options.dtype)
    drafter, _ = load_any(options.drafter, target)
    rows = read_prompt_file(options.data)[: options.prompts]
    given = [prompt_ids(target.tokenizer, row["messages"]) for row in rows]
    prompts = [ids for ids in given if len(ids) + options.max_new_tokens <= target.max_positions]
    small = Target.from_pretrained(options.draft_model, dtype=options.dtype) if options.draft_model else None
    drafts = [(proposer, "propose") for proposer in (drafter, PromptLookup, DraftModel)]
    with clocked((target, "forward"), (target, "forward_tree")) as base, clocked(*drafts) as drafting:
        ways = decodings(options, target, drafter, small)
        if options.compiled:
            ways |= compiled_decodings(options, prompts)
        found = measure(ways, prompts, base, drafting)
    for name, total in found.items():
        if total.answers != found[PLAIN].answers:
            same = sum(a == b for a, b in zip(total.answers, found[PLAIN].answers, strict=True))
            print(f"{name}: {same} of {len(prompts)} answers are those of our plain loop")
    print_table(found, len(prompts), options.dtype)
    print_steps({name: total for name, total in found.items() if total.base}, len(prompts))


def decodings(options: argparse.Namespace, target: Target, drafter: Any, small: Target | None) -> dict[str, Decode]:
    def ours(with_drafter: Proposer | None, tree: Shape | None = None) -> Decode:
        def decode(ids: list[int]) -> tuple[list[int], int]:
            made = generate(target, with_drafter, ids, options.max_new_tokens, tree=tree)
            return made.token_ids, made.steps + 1

        return decode

    def theirs(**choices: Any) -> Decode:
        def decode(ids: list[int]) -> tuple[list[int], int]:
            prompt = torch.tensor([ids], device=target.device)
            given = {"max_new_tokens": options.max_new_tokens, "do_sample": False, **choices}
            made = target.model.generate(prompt, attention_mask=torch.ones_like(prompt), **given)
            return made[0, len(ids) :].tolist(), 0

        return decode

    ways = {
        PLAIN: ours(None),
        f"{drafter.method}, chain of {drafter.draft_tokens}": ours(drafter),
        f"{drafter.method}, tree {options.tree}": ours(drafter, parse_tree(options.tree)),
        "prompt lookup": ours(PromptLookup()),
        "transformers": theirs(),
        "transformers, prompt lookup": theirs(prompt_lookup_num_tokens=10),
    }
    if small:
        ways["draft model"] = ours(DraftModel.for_base(small, target))
        ways["transformers, draft model"] = theirs(assistant_model=small.model)
    return ways


def compiled_decodings(options: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Decode]:
    """With a base and a drafter of their own, whose passes are not clocked."""
    target = Target.from_pretrained(options.base, dtype=options.dtype)
    drafter, _ = load_any(options.drafter, target)
    target.compile()
    drafter.compile_drafting()
    longest = max(map(len, prompts)) + options.max_new_tokens

    def ours(with_drafter: Proposer | None, drafts: int, tree: Shape | None = None) -> Decode:
        cache = target.fixed_cache(longest, drafts + 1)

        def decode(ids: list[int]) -> tuple[list[int], int]:
            cache.reset()
            made = generate(target, with_drafter, ids, options.max_new_tokens, tree=tree, cache=cache)
            return made.token_ids, made.steps + 1

        return decode

    length, tree = drafter.draft_tokens, parse_tree(options.tree)
    return {
        f"{PLAIN}, compiled": ours(None, 0),
        f"{drafter.method}, chain of {length}, compiled": ours(drafter, length),
        f"{drafter.method}, tree {tree}, compiled": ours(drafter, tree.nodes, tree),
    }


@contextmanager
def clocked(*methods: tuple[Any, str]) -> Iterator[list[float]]:
    """The seconds of the calls of these methods, of an object or a class each, in one list."""
    taken: list[float] = []

    def timed(method: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            made = method(*arguments, **keywords)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
            return made

        return call

    with ExitStack() as stack:
        for thing, name in methods:
            stack.enter_context(patch.object(thing, name, timed(getattr(thing, name))))
        yield taken


def measure(
    ways: dict[str, Decode], prompts: list[list[int]], base: list[float], drafting: list[float]
) -> dict[str, Total]:
    """Every prompt goes through all ways in turn."""
    for decode in ways.values():
        decode(prompts[0])
    totals = {name: Total() for name in ways}
    for ids in prompts:
        for name, decode in ways.items():
            base.clear()
            drafting.clear()
            began = time.perf_counter()
            answer, passes = decode(ids)
            total = totals[name]
            total.seconds += time.perf_counter() - began
            total.tokens += len(answer)
            total.passes += passes
            total.answers.append(answer)
            if base:
                first_draft = drafting[0] - statistics.median(drafting[1:]) if drafting[1:] else 0.0
                total.reading += base[0] + first_draft
                total.base += sum(base[1:])
                total.drafting += sum(drafting) - first_draft
    return totals


def print_table(found: dict[str, Total], prompts: int, dtype: str) -> None:
    table = Table(title=f"Greedy decoding of {prompts} prompts, {dtype}, {torch.get_num_threads()} threads")
    for column in ("way", "tokens/s", "to plain", "tokens a pass", "ms a pass"):
        table.add_column(column, justify="left" if column == "way" else "right")
    plain = found[PLAIN].tokens / found[PLAIN].seconds
    for name, total in found.items():
        speed = total.tokens / total.seconds
        passes = ["", ""]
        if total.passes:  # transformers does not tell
            passes = [f"{total.tokens / total.passes:.2f}", f"{1000 * total.seconds / total.passes:.2f}"]
        table.add_row(name, f"{speed:.0f}", f"{speed / plain:.2f}", *passes)
    Console(width=100).print(table)


def print_steps(found: dict[str, Total], prompts: int) -> None:
    table = Table(title="A step behind the prompt, in milliseconds")
    for column in ("way", "drafting", "base", "the rest", "bound", "reached"):
        table.add_column(column, justify="left" if column == "way" else "right")
    plain = found[PLAIN]
    step = (plain.seconds - plain.reading) / (plain.passes - prompts)
    for name, total in found.items():
        seconds, passes = total.seconds - total.reading, total.passes - prompts
        length = (total.tokens - prompts) / passes
        cells = [f"{1000 * part / passes:.2f}" for part in (total.drafting, total.base)]
        cells.append(f"{1000 * (seconds - total.base - total.drafting) / passes:.2f}")
        bound = length / (1 + total.drafting / passes / step)
        table.add_row(name, *cells, f"{bound:.2f}", f"{length * step * passes / seconds / bound:.2f}")
    Console(width=100).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("models/base"))
    parser.add_argument("--drafter", type=Path, default=Path("models/drafters/medusa"))
    parser.add_argument("--draft-model", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/prompts/test.jsonl"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--tree", default="4,3,12")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
