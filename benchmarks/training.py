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
above what base and drafter take at rest, of a fresh process each (gradients and AdamW's state included; on a CPU
resident memory, to which the cache's mapped files count though the system may take them back). Linux only.
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
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention, smooth_l1_loss
from transformers.utils import logging

from specdec.config import METHOD_SECTIONS, validated
from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.data.conversations import RowCount, read_conversations
from specdec.data.packing import PackedRow, Sequence, cut, pack, sequences
from specdec.data.rendering import render
from specdec.drafters import Drafter, Features, Medusa, medusa, new_drafter, unrolled
from specdec.drafters.unrolled import Unrolled
from specdec.io import read_jsonl
from specdec.targets import Target
from specdec.training.cache import FeatureCache
from specdec.training.features import Batch, collate, compute_features
from tests.tiny import write_base

VARIANTS = ("online", "cached", "reference")
MEMORY_STEPS = 3
CHOICE = 4  # times as much data is packed as is taken: rows fill up as well as those of a whole training
HEAD_SIZE = 32
FIRST_WORD = 6  # of the random base's tokenizer: behind the special tokens
OUT_OF_MEMORY = "out of memory"

Part = Callable[[str], AbstractContextManager[None]]


def main() -> None:
    options = arguments()
    logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest" if options.dtype == "float32" else "high")
    if options.variant:
        print(json.dumps(peak_memory(options, options.variant)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        if options.base is None:
            write_random_base(options)
        compare_losses(options)
        work = Work.of(options)
        print(work.told(), flush=True)
        writing = write_cache(work)
        peaks = {name: ask_peak_memory(name, options.folder) for name in VARIANTS}
        able = [name for name in VARIANTS if peaks[name] is not None]
        runs = {name: Run(work, name) for name in able}
        speeds = measure(runs, options)
        print_table(work, speeds, peaks)
        print_writing(work, writing, speeds)
        if options.profile:
            print_profile(work, runs["online"])


# ---------------------------------------------------------------- what is trained


@dataclass(frozen=True)
class Work:
    """The same conversations for all: packed rows and padded batches, one of each a step."""

    target: Target
    settings: Any
    options: argparse.Namespace
    packed: list[list[PackedRow]]
    padded: list[Batch]

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Work":
        target = load_base(options, options.dtype)
        random = np.random.default_rng(0)
        count = options.rows * options.steps
        wanted = enough(conversations(options, target), options.length, CHOICE * count * options.length)
        rows = pack(wanted, options.length, 0)
        if len(rows) < count:
            sys.exit(f"the data fills {len(rows)} rows, and {count} are wanted: lower --steps or --rows")
        rows = [rows[i] for i in random.permutation(len(rows))[:count]]
        packed = [rows[i : i + options.rows] for i in range(0, count, options.rows)]
        single = [document for row in rows for document in documents(row)]
        borders = np.linspace(0, len(single), options.steps + 1).astype(int)
        order = [single[i] for i in random.permutation(len(single))]
        padded = [padded_batch(order[start:stop]) for start, stop in pairwise(borders)]
        return cls(target, method_settings(options), options, packed, padded)

    @property
    def rows(self) -> list[PackedRow]:
        return [row for step in self.packed for row in step]

    @property
    def answer_tokens(self) -> int:
        return sum(int(row.loss_mask.sum()) for row in self.rows)

    def padding(self, name: str) -> float:
        """Share of the positions that a variant runs over."""
        batches = self.padded if name == "reference" else [collate(rows) for rows in self.packed]
        real = sum(int((batch["document_ids"] >= 0).sum()) for batch in batches)
        return 1 - real / sum(batch["token_ids"].numel() for batch in batches)

    def told(self) -> str:
        lengths = sorted(int((row >= 0).sum()) for batch in self.padded for row in batch["document_ids"])
        return (
            f"{len(lengths)} conversations of {lengths[0]} to {lengths[-1]} tokens (median "
            f"{statistics.median(lengths):.0f}), {sum(lengths):,} tokens, {self.answer_tokens:,} of answers; a step "
            f"is {self.options.rows} packed rows of {self.options.length}, or about "
            f"{len(lengths) / self.options.steps:.1f} conversations"
        )


def load_base(options: argparse.Namespace, dtype: str) -> Target:
    return Target.from_pretrained(options.base or options.folder / "base", dtype, options.device)


def write_random_base(options: argparse.Namespace) -> None:
    heads = options.hidden // HEAD_SIZE
    write_base(
        options.folder / "base",
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=HEAD_SIZE,
        max_position_embeddings=2 * options.length,
        initializer_range=1.6 / options.hidden**0.5,  # answers that are neither certain nor all alike
    )


def method_settings(options: argparse.Namespace) -> Any:
    """The defaults; an EAGLE without noise, which would be another one in every variant."""
    steps = "num_heads" if options.method == "medusa" else "unroll_steps"
    own = {steps: options.unroll_steps} if options.unroll_steps else {}
    quiet = {"input_noise": 0.0} if options.method == "eagle" else {}
    values = {**METHOD_DEFAULTS[options.method], **own, **quiet}
    return validated(METHOD_SECTIONS[options.method], values, "command line")


def fresh_drafter(target: Target, settings: Any) -> Drafter:
    torch.manual_seed(0)
    return new_drafter(target, settings)


def conversations(options: argparse.Namespace, target: Target) -> Iterator[Sequence]:
    """Those of the file, shuffled; random ones without end when there is none."""
    random = np.random.default_rng(1)
    if options.data is not None:
        found = [s for row in read_rows(options.data, target) for s in sequences(row)]
        yield from (found[i] for i in random.permutation(len(found)))
        return
    while True:
        prompt = int(np.clip(random.lognormal(np.log(options.length / 10), 0.9), 4, options.length / 2))
        answer = int(np.clip(random.lognormal(np.log(options.length / 7), 0.8), 4, options.length))
        ids = random.integers(FIRST_WORD, target.vocab_size, prompt + answer)
        yield Sequence(ids, np.arange(prompt + answer) >= prompt)


def read_rows(file: Path, target: Target) -> list[dict[str, Any]]:
    """Rows with `segments`: the file's own, or what the chat template makes of its conversations."""
    with file.open() as lines:
        if '"segments"' in lines.readline():
            return list(read_jsonl(file))
    return list(render(target.tokenizer, read_conversations(file, RowCount()), target.stop_ids))


def enough(found: Iterator[Sequence], length: int, tokens: int) -> list[Sequence]:
    """The first ones that hold so many tokens together, cut, without those of which no answer is left."""
    taken: list[Sequence] = []
    for sequence in found:
        sequence = cut(sequence, length)
        if sequence.loss_mask.any():
            taken.append(sequence)
            tokens -= len(sequence)
        if tokens <= 0:
            break
    return taken


def documents(row: PackedRow) -> Iterator[Sequence]:
    """The conversations of a packed row."""
    for i in range(row.document_ids.max() + 1):
        own = row.document_ids == i
        yield Sequence(row.token_ids[own], row.loss_mask[own])


def padded_batch(found: list[Sequence]) -> Batch:
    """One conversation a row, padded to the longest."""
    longest = max(map(len, found))
    return collate([pack([sequence], longest, 0)[0] for sequence in found])


# ---------------------------------------------------------------- the reference


def padded_features(target: Target, batch: Batch, aux_layers: tuple[int, ...] = ()) -> Features:
    """`compute_features` of right-padded conversations: plain causal attention needs no mask."""
    batch = {name: tensor.to(target.device) for name, tensor in batch.items()}
    names = ("token_ids", "loss_mask", "document_ids", "positions")
    with torch.no_grad():
        output = target.forward(batch["token_ids"], layers=aux_layers)
    return Features(*(batch[name] for name in names), output.hidden, output.auxiliary)


def reference_loss(drafter: Drafter, settings: Any, features: Features) -> Tensor:
    """KL at every position, masked afterwards, averaged over the anchors of each draft position."""
    hidden = features.hidden
    outputs: list[Tensor] = []
    if isinstance(drafter, Medusa):
        states = [block(hidden.float()) for block in drafter.blocks]
        weights, scale, decay, share = drafter.output_weights, 1.0, settings.head_decay, 1.0
    else:
        assert isinstance(drafter, Unrolled)
        outputs, states = run_everywhere(drafter, features)
        weights, scale = [drafter.output_weight] * len(states), drafter.logit_scale
        decay, share = settings.unroll_decay, drafter.head_weight()
    q, entropy = base_says(drafter.target, hidden)
    total = torch.zeros((), device=hidden.device)
    for k, (state, weight) in enumerate(zip(states, weights, strict=True)):
        last = hidden.shape[1] - 1 - k
        logits = linear(state[:, :last], weight)
        log_p = (logits if scale == 1.0 else logits * scale).log_softmax(-1, dtype=torch.float32)
        losses = share * (entropy[:, 1 + k :] - (q[:, 1 + k :] * log_p).sum(-1))
        if settings.method == "eagle":
            distance = smooth_l1_loss(outputs[k][:, :last].float(), hidden[:, 1 + k :].float(), reduction="none")
            losses = losses + settings.feature_weight * distance.mean(-1)
        anchors = features.answer_run(2 + k)[:, :last]
        total = total + decay**k * (losses * anchors).sum() / anchors.sum().clamp(min=1)
    return total


@torch.no_grad()
def base_says(target: Target, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """hidden[B, T, H] -> q[B, T, V] of the token behind each, and sum q log q [B, T]."""
    log_q = target.logits(hidden).log_softmax(-1)
    q = log_q.exp()
    return q, (q * log_q).sum(-1)


def run_everywhere(drafter: Unrolled, features: Features) -> tuple[list[Tensor], list[Tensor]]:
    """The layers' outputs, and what the output layer reads of them: [B, T, H] of each draft position."""
    ids, hidden, auxiliary = features.token_ids, features.hidden.float(), features.auxiliary
    states = drafter.first_states(hidden, None if auxiliary is None else auxiliary.float())
    caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in drafter.layers]
    outputs, said = [], []
    for k in range(drafter.unroll_steps):
        places = torch.arange(k, k + ids.shape[1], device=ids.device)
        places = places.clamp(max=drafter.target.max_positions - 1)  # of padding, where the base takes no more
        embeddings = drafter.embed(pad(ids[:, 1 + k :], (0, 1 + k)))
        x = drafter.join(states, embeddings)
        for layer, cache in zip(drafter.layers, caches, strict=True):
            inputs, residual = layer.enter(x, embeddings)
            query = drafter.rotary(layer.self_attn.query(inputs), places)
            key, value = layer.self_attn.key_value(inputs)
            group = query.shape[2] // key.shape[2]
            pair = (drafter.rotary(key, places), value)
            cache.append(tuple(t.repeat_interleave(group, 2).transpose(1, 2) for t in pair))  # type: ignore[arg-type]
            x = layer.leave(residual, attend(query.transpose(1, 2), cache).transpose(1, 2).flatten(2))
        spoken, states = drafter.finish(x)
        outputs.append(x)
        said.append(spoken)
    return outputs, said


def attend(query: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
    """query[B, h, T, D]; cache: keys and values of draft positions 0..k -> [B, h, T, D].

    Position 0 is seen causally; of the others each query sees the keys at its own place, k of them.
    """
    (keys, values), own = cache[0], cache[1:]
    if not own:
        return scaled_dot_product_attention(query, keys, values, is_causal=True)
    length, scale = query.shape[2], query.shape[3] ** -0.5
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ keys.transpose(-1, -2)).masked_fill_(later, float("-inf"))
    further = [(query * key).sum(-1, keepdim=True) for key, _ in own]
    shares = (torch.cat([scores, *further], -1) * scale).softmax(-1, dtype=torch.float32).to(values.dtype)
    found = shares[..., :length] @ values
    for j, (_, value) in enumerate(own):
        found = found + shares[..., length + j, None] * value
    return found


def compare_losses(options: argparse.Namespace) -> None:
    """Exits unless the reference's loss is specdec's, on pieces of a few conversations, with moved weights."""
    target, settings = load_base(options, "float32"), method_settings(options)
    drafter = fresh_drafter(target, settings)
    with torch.no_grad():
        for weight in drafter.parameters():  # some start at zero
            weight.add_(torch.randn_like(weight), alpha=0.05)
    pieces = list(enough(map(around_the_answer, conversations(options, target)), 64, 200))
    ours = compute_features(target, collate(pack(pieces, 128, 0)), drafter.aux_layers)
    theirs = padded_features(target, padded_batch(pieces), drafter.aux_layers)
    found = []
    for loss in (drafter(ours).loss, reference_loss(drafter, settings, theirs)):
        found.append((loss.item(), torch.autograd.grad(loss, list(drafter.parameters()))))
    (our_loss, our_slopes), (their_loss, their_slopes) = found
    apart = sum(float((a - b).square().sum()) for a, b in zip(our_slopes, their_slopes, strict=True))
    apart = (apart / sum(float(a.square().sum()) for a in our_slopes)) ** 0.5
    print(
        f"loss on {len(pieces)} conversations: specdec {our_loss:.6f}, reference {their_loss:.6f} "
        f"(relative difference {abs(our_loss / their_loss - 1):.1e}, of the gradients {apart:.1e})",
        flush=True,
    )
    if not (abs(our_loss / their_loss - 1) < 1e-4 and apart < 1e-3):
        sys.exit("the reference trains something else")


def around_the_answer(sequence: Sequence) -> Sequence:
    """The end of the first prompt, and the beginning of its answer."""
    first = int(sequence.loss_mask.argmax())
    piece = slice(max(0, first - 5 - first % 20), first + 40)
    return Sequence(sequence.token_ids[piece], sequence.loss_mask[piece])


# ---------------------------------------------------------------- running


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


def ask_peak_memory(name: str, folder: Path) -> float | None:
    """MB, from a fresh process; None where memory did not suffice."""
    command = [sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--variant", name, "--folder", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode == -9:  # the system's own way to say so
        return None
    if ran.returncode:
        sys.exit(f"{name} failed:\n{ran.stderr[-3000:]}")
    found: float | None = json.loads(ran.stdout.splitlines()[-1])
    print(f"memory: {name} {OUT_OF_MEMORY if found is None else f'{found:,.0f} MB'}", flush=True)
    return found


def peak_memory(options: argparse.Namespace, name: str) -> float | None:
    """MB above what is held before the first step, over a few steps; the whole of this process."""
    work = Work.of(options)
    run = Run(work, name)
    sum(float(weight.sum()) for weight in work.target.model.parameters())  # reads what is only mapped so far
    on_gpu = work.target.device.type == "cuda"
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
    parser.add_argument("--hidden", type=int, default=256, help=f"of the random Llama, a multiple of {HEAD_SIZE}")
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
