"""Acceptance length of the methods at equal data and budget, and what each choice is worth.

    python -m benchmarks.quality medusa eagle eagle3 [--base DIR] [--train JSONL] [--prompts JSONL]
    python -m benchmarks.quality eagle3 --ablate        one setting changed at a time

--train: rows of `segments`, as `synthesize` writes them, or of bare `token_ids` (all of it answers). --prompts: rows
of `messages` or `prompt_token_ids`; the base answers them greedily, and the drafters are counted on those answers as
decoding would count them (docs/drafters.md); without --ablate they are decoded too, and both figures are printed.
Intervals: bootstrap over prompts; for differences, over the same prompts. "defaults" are those of `specdec train`
but for 5 Medusa heads and 3 unroll steps. The peak is the resident memory of the process, told for one method alone.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch import nn

from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.config.schema import DRAFTER_SECTIONS
from specdec.data.packing import PackedRow, pack, sequences
from specdec.data.prompts import prompt_ids
from specdec.decoding import generate
from specdec.drafters import Drafter, new_drafter
from specdec.evaluation.statistics import Interval, difference_interval, ratio_interval
from specdec.io import read_jsonl
from specdec.targets import Target
from specdec.training import train
from specdec.training.acceptance import AcceptanceCount
from specdec.training.features import collate, compute_features
from specdec.training.processes import state
from specdec.training.rows import count_answer_tokens

CHAINS = (3, 5)
SAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0

Change = dict[str, Any]
Start = Callable[[Drafter], None]
Answered = tuple[list[int], list[int]]  # a prompt, and the base's greedy answer


@dataclass(frozen=True)
class Variant:
    """name: what is changed. own: the method's settings; training: training settings; start: acts on new weights."""

    name: str
    own: Change
    training: Change
    start: Start | None = None


def main() -> None:
    options = arguments()
    known = {name for method in options.methods for name in METHOD_DEFAULTS[method]}
    if strange := [name for name, _ in options.set if name not in known]:
        sys.exit(f"--set {strange[0]}: no setting of {', '.join(options.methods)}")
    state()
    options.cache.mkdir(parents=True, exist_ok=True)
    target = Target.from_pretrained(options.base, dtype=options.dtype)
    rows = list(training_rows(options, target))
    answers = list(answered(options, target))
    console = Console(width=150)
    tokens = sum(int(row.loss_mask.sum()) for row in rows)
    console.print(
        f"{target.name}: {len(rows):,} rows of {options.max_length} ({tokens:,} answer tokens), "
        f"{options.epochs:g} epochs, learning rate {options.learning_rate:g}, {options.dtype}, {options.features} "
        f"features{''.join(f', {name} {value}' for name, value in options.set)}; {len(answers)} test prompts, greedy"
    )
    for method in options.methods:
        variants = ablations(method, options) if options.ablate else [Variant("defaults", {}, {})]
        report(console, target, method, variants, rows, answers, options)


def report(
    console: Console,
    target: Target,
    method: str,
    variants: list[Variant],
    rows: list[PackedRow],
    answers: list[Answered],
    options: argparse.Namespace,
) -> None:
    """One line a variant, as soon as it is known: chains of 3 and 5, and the difference to the first variant."""
    first: dict[int, list[AcceptanceCount]] = {}
    for variant in variants:
        drafter, speed = trained(target, method, variant, rows, answers, options)
        counts = {chain: counted(target, drafter, answers, chain) for chain in CHAINS}
        first = first or counts
        line = [f"{method:7} {variant.name:28}"]
        for chain in CHAINS:
            line.append(f"chain {chain}: {shown(interval(counts[chain]))}")
            if variant is not variants[0]:
                line.append(f"({signed(difference(counts[chain], first[chain]))})")
            elif not options.ablate:
                found = [decoded(target, drafter, prompt, answer, chain, options) for prompt, answer in answers]
                line.append(f"decoded {shown(interval(found))}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        line.append(f"{speed:,.0f} tokens/s" + (f", peak {peak:,.0f} MB" if len(options.methods) == 1 else ""))
        console.print("  ".join(line), soft_wrap=True)
        if options.save and variant is variants[0]:
            drafter.draft_tokens = CHAINS[0] if method != "medusa" else drafter.draft_tokens
            drafter.save_pretrained(options.save / method, {"benchmark": variant.name})


def ablations(method: str, options: argparse.Namespace) -> list[Variant]:
    """The defaults, then one change at a time. EAGLE speaks through the base's output layer: it has none to start."""
    rate = options.learning_rate
    losses = [Variant(f"loss {kind}", {"loss": kind}, {}) for kind in ("cross_entropy", "overlap", "hybrid")]
    rates = [Variant(f"learning rate {r:g}", {}, {"learning_rate": r}) for r in (rate / 2, rate * 2)]
    scratch = Variant("output layer from scratch", {}, {}, scratch_output)
    common = [Variant("defaults", {}, {}), Variant("another seed", {}, {"seed": 1}), *losses, *rates]
    if method == "medusa":
        return [
            *common,
            scratch,
            Variant("shared output layer", {"shared_output_layer": True}, {}),
            Variant("2 residual layers", {"num_layers": 2}, {}),
            Variant("head_decay 1", {"head_decay": 1.0}, {}),
        ]
    unrolls = [Variant(f"unroll_steps {n}", {"unroll_steps": n}, {}) for n in (1, 5, 7)]
    common += [*unrolls, Variant("unroll_decay 1", {"unroll_decay": 1.0}, {})]
    if method == "eagle":
        return [
            *common,
            Variant("fusing layer at random", {}, {}, random_fuse),
            Variant("no feature loss", {"feature_weight": 0.0}, {}),
            Variant("no input noise", {"input_noise": 0.0}, {}),
        ]
    return [
        *common,
        scratch,
        Variant("aux_layers 2, L/2, L-3", {"aux_layers": original_layers}, {}),
        Variant("fusing layer hands the last on", {}, {}, hand_on),
        Variant("no fc_norm", {"fc_norm": False}, {}),
        Variant("no norm_output", {"norm_output": False}, {}),
        Variant("draft vocabulary V/2", {"draft_vocab_size": half}, {}),
    ]


def original_layers(target: Target) -> list[int]:
    """The layers that EAGLE-3's authors read: the outputs that vLLM, too, takes where a checkpoint names none."""
    return [2, target.num_layers // 2, target.num_layers - 3]


def half(target: Target) -> int:
    return target.vocab_size // 2


def scratch_output(drafter: Drafter) -> None:
    for name, weight in drafter.named_parameters():
        if name.startswith("lm_head"):
            nn.init.normal_(weight, std=0.02)


def random_fuse(drafter: Drafter) -> None:
    for name, weight in drafter.named_parameters():
        if name == "fc.weight":
            nn.init.normal_(weight, std=0.02)


def hand_on(drafter: Drafter) -> None:
    """Of the base's states the last one, as it is."""
    for name, weight in drafter.named_parameters():
        if name == "fc.weight":
            nn.init.zeros_(weight)
            nn.init.eye_(weight[:, -len(weight) :])


def trained(
    target: Target,
    method: str,
    variant: Variant,
    rows: list[PackedRow],
    answers: list[Answered],
    options: argparse.Namespace,
) -> tuple[Drafter, float]:
    """(the drafter, answer tokens a second over its training, validation not counted)."""
    own = {name: value(target) if callable(value) else value for name, value in variant.own.items()}
    given: Change = dict(METHOD_DEFAULTS[method])
    given |= {"num_heads": max(CHAINS)} if method == "medusa" else {"unroll_steps": 3}
    given |= {name: value for name, value in options.set if name in given}
    training = TRAINING_DEFAULTS | {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "max_length": options.max_length,
        "rows_per_step": options.rows_per_step,
        "rows_per_pass": options.rows_per_step,
        "save_steps": 10**6,
        "features": options.features,
        "dtype": options.dtype,
    }
    settings = DRAFTER_SECTIONS[method].model_validate(given | own | {"training": training | variant.training})
    torch.manual_seed(settings.training.seed)
    drafter = new_drafter(target, settings, count_answer_tokens(rows, target.vocab_size))
    if variant.start:
        variant.start(drafter)
    speeds: list[float] = []

    def on_log(metrics: dict[str, float], step: int) -> None:
        if "answer_tokens_per_second" in metrics:
            speeds.append(metrics["answer_tokens_per_second"])

    with tempfile.TemporaryDirectory() as work:
        held = [packed(prompt, answer, options.max_length) for prompt, answer in answers[:8]]
        train(target, drafter, rows, held, settings.training, Path(work), options.cache, on_log, lambda line: None)
    drafter.eval()
    return drafter, len(speeds) / sum(1 / s for s in speeds)


@torch.no_grad()
def counted(target: Target, drafter: Drafter, answers: list[Answered], chain: int) -> list[AcceptanceCount]:
    """What decoding will count on each prompt."""
    found = []
    for prompt, answer in answers:
        row = packed(prompt, answer, len(prompt) + len(answer))
        features = compute_features(target, collate([row]), drafter.aux_layers)
        count = AcceptanceCount.empty(min(chain, drafter.loss_positions) if drafter.method == "medusa" else chain)
        count.add_batch(features, drafter.loss(features, positions=len(count.accepted), measure=True))
        found.append(count)
    return found


def decoded(
    target: Target, drafter: Drafter, prompt: list[int], answer: list[int], chain: int, options: argparse.Namespace
) -> AcceptanceCount:
    """What decoding counts. Raises AssertionError when it says something else than the base alone."""
    drafter.draft_tokens = chain
    made = generate(target, drafter, prompt, options.max_new_tokens)
    assert made.token_ids == answer, "decoding with the drafter changed the answer"
    accepted = np.array([sum(a > i for a in made.accepted_per_step) for i in range(chain)])
    return AcceptanceCount(made.steps, accepted)


def packed(prompt: list[int], answer: list[int], length: int) -> PackedRow:
    (row,) = pack(sequences({"segments": [{"prompt_token_ids": prompt, "token_ids": answer}]}), length, 0)
    return row


def training_rows(options: argparse.Namespace, target: Target) -> Iterator[PackedRow]:
    rows = list(read_jsonl(options.train))[: options.max_train]
    found = [
        sequence
        for row in rows
        for sequence in sequences(
            row if "segments" in row else {"segments": [{"prompt_token_ids": [], "token_ids": row["token_ids"]}]}
        )
    ]
    yield from pack(found, options.max_length, target.tokenizer.pad_token_id or 0)


def answered(options: argparse.Namespace, target: Target) -> Iterator[Answered]:
    for row in list(read_jsonl(options.prompts))[: options.max_prompts]:
        prompt = row.get("prompt_token_ids") or prompt_ids(target.tokenizer, row["messages"])
        yield prompt, generate(target, None, prompt, options.max_new_tokens).token_ids


def interval(counts: list[AcceptanceCount]) -> Interval:
    return ratio_interval(*_sums(counts), SAMPLES, CONFIDENCE, SEED).plus(1)


def difference(counts: list[AcceptanceCount], others: list[AcceptanceCount]) -> Interval:
    return difference_interval(_sums(counts), _sums(others), SAMPLES, CONFIDENCE, SEED)


def _sums(counts: list[AcceptanceCount]) -> tuple[list[int], list[int]]:
    return [int(c.accepted.sum()) for c in counts], [c.steps for c in counts]


def shown(found: Interval) -> str:
    return f"{found.value:.3f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None else "")


def signed(found: Interval) -> str:
    return f"{found.value:+.3f}" + (f" [{found.low:+.3f}, {found.high:+.3f}]" if found.low is not None else "")


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "methods", nargs="+", choices=METHOD_DEFAULTS, metavar="METHOD", help=", ".join(METHOD_DEFAULTS)
    )
    parser.add_argument("--base", default="models/base")
    parser.add_argument("--train", type=Path, default=Path("data/synthetic/train.jsonl"))
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts/test.jsonl"))
    parser.add_argument("--max-train", type=int, help="rows")
    parser.add_argument("--max-prompts", type=int)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rows-per-step", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--features", choices=("online", "cached"), default="cached")
    parser.add_argument("--dtype", default="float32", help="of the base; bfloat16 also is autocast's")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        type=setting,
        metavar="NAME=VALUE",
        help="settings of the methods that have them",
    )
    parser.add_argument("--cache", type=Path, default=Path(".specdec/features"))
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--save", type=Path, help="folder for the trained drafters")
    return parser.parse_args()


if __name__ == "__main__":
    main()
