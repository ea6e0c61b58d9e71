"""The output layer and its loss alone: time and memory of one step, beside whole logits and Liger's fused losses.

    python -m benchmarks.head_loss [--hidden 2048] [--vocab 32000] [--rows 4096] [--positions 7] [--dtype bfloat16]

`rows` answer tokens, each drafted from `positions` draft positions, through one output layer; the base's distribution
comes from its own hidden states through its own layer. Forward and backward.

    specdec       `specdec.drafters.head_loss`: forward KL, or cross-entropy; the base is asked once for all positions
    whole logits  the same by autograd, one draft position after the other
    Liger         its fused linear cross-entropy; its fused linear JSD at beta 0, which is forward KL, and which asks
                  the base anew at every draft position (left out without liger-kernel or an NVIDIA GPU)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from specdec.drafters.head_loss import Job, head_loss

Step = Callable[[], Tensor]


def main() -> None:
    options = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    scale = 1.6 / options.hidden**0.5
    shape = (options.vocab, options.hidden)
    base = (torch.randn(shape, device=device) * scale).to(dtype)
    weight = (base.float() + 0.3 * scale * torch.randn(shape, device=device)).requires_grad_()
    hidden = torch.randn(options.rows, options.hidden, device=device).to(dtype)
    states = [
        (hidden.float() + 0.5 * torch.randn(hidden.shape, device=device)).requires_grad_()
        for _ in range(options.positions)
    ]
    labels = torch.cat([linear(part, base).argmax(-1) for part in hidden.split(1024)])
    ways = ours(weight, states, base, hidden, labels, dtype) | whole(weight, states, base, hidden, labels, dtype)
    if device.type == "cuda" and find_spec("liger_kernel"):
        ways |= liger(weight, states, base, hidden, labels, dtype)
    found = {name: measured(step, [weight, *states], options.rounds) for name, step in ways.items()}
    table = Table(
        title=f"{options.rows:,} rows x {options.positions} positions, hidden {options.hidden:,}, "
        f"{options.vocab:,} tokens, {options.dtype}, {device}"
    )
    for column in ("loss", "ms a step", "peak memory", "value", "gradient's norm"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for name, result in found.items():
        table.add_row(name, *(["out of memory", "-", "-", "-"] if result is None else result))
    Console(width=100).print(table)


def ours(
    weight: Tensor, states: list[Tensor], base: Tensor, hidden: Tensor, labels: Tensor, dtype: torch.dtype
) -> dict[str, Step]:
    def step(kind: str) -> Tensor:
        job = Job(
            kind=kind,
            places=[torch.arange(len(labels), device=labels.device)] * len(states),
            labels=labels,
            teacher=None if kind == "cross_entropy" else lambda places: linear(hidden[places], base).float(),
            factors=torch.full((len(states),), 1 / len(labels), device=labels.device),
        )
        with torch.autocast(labels.device.type, dtype, enabled=dtype is not torch.float32):
            return head_loss(job, states, [weight] * len(states))

    return {f"specdec, {kind}": lambda kind=kind: step(kind) for kind in ("kl", "cross_entropy")}  # type: ignore[misc]


def whole(
    weight: Tensor, states: list[Tensor], base: Tensor, hidden: Tensor, labels: Tensor, dtype: torch.dtype
) -> dict[str, Step]:
    def said(state: Tensor) -> Tensor:
        with torch.autocast(labels.device.type, dtype, enabled=dtype is not torch.float32):
            return linear(state, weight).float()

    def kl() -> Tensor:
        with torch.no_grad():
            log_q = linear(hidden, base).float().log_softmax(-1)
            q = log_q.exp()
            entropy = (q * log_q).sum(-1)
        parts = [(entropy - (q * said(state).log_softmax(-1)).sum(-1)).mean() for state in states]
        return torch.stack(parts).sum()

    def hard() -> Tensor:
        return torch.stack([cross_entropy(said(state), labels) for state in states]).sum()

    return {"whole logits, kl": kl, "whole logits, cross_entropy": hard}


def liger(
    weight: Tensor, states: list[Tensor], base: Tensor, hidden: Tensor, labels: Tensor, dtype: torch.dtype
) -> dict[str, Step]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    divergence, hard = LigerFusedLinearJSD(jsd_beta=0.0), LigerFusedLinearCrossEntropyLoss()

    def kl() -> Tensor:
        own = weight.to(dtype)
        return torch.stack([divergence(state.to(dtype), own, hidden, base, None) for state in states]).sum()

    def cross() -> Tensor:
        own = weight.to(dtype)
        return torch.stack([hard(own, state.to(dtype), labels) for state in states]).sum()

    return {"Liger, kl": kl, "Liger, cross_entropy": cross}


def measured(step: Step, leaves: list[Tensor], rounds: int) -> tuple[str, str, str, str] | None:
    """The median of some steps behind one that warms up; None where memory did not suffice."""
    on_gpu, seconds, peak, value, norm = leaves[0].is_cuda, [], 0, 0.0, 0.0
    try:
        for number in range(1 + rounds):
            for leaf in leaves:
                leaf.grad = None
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() if on_gpu else 0
            began = time.perf_counter()
            loss = step()
            loss.backward()
            if on_gpu:
                torch.cuda.synchronize()
                peak = torch.cuda.max_memory_allocated() - held
            if number:
                seconds.append(time.perf_counter() - began)
            value = loss.item()
            norm = sum(float(leaf.grad.double().square().sum()) for leaf in leaves if leaf.grad is not None) ** 0.5
    except torch.OutOfMemoryError:
        return None
    memory = f"{peak / 1e6:,.0f} MB" if on_gpu else "-"
    return f"{1000 * statistics.median(seconds):,.1f}", memory, f"{value:.5f}", f"{norm:.5f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--positions", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
