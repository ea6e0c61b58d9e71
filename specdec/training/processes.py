"""One training in several processes (`torchrun`, `accelerate launch`): who writes, and sums over all of them."""

import os
import sys

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard

from specdec.targets import Target


def state() -> PartialState:
    """This process among the others; the first call joins them."""
    return PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes files and figures."""
    return bool(state().is_main_process)


def share(count: int) -> range:
    """The items, of `count`, that this process looks at."""
    own = state()
    return range(own.process_index, count, own.num_processes)


def sum_over_processes(value: Tensor) -> Tensor:
    """The same on every process."""
    if not distributed.is_initialized():
        return value
    total = value.detach().clone().to(state().device)
    distributed.all_reduce(total)
    return total.to(value.device)


def training_device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    return torch.device(state().device)


def shard_base(target: Target) -> None:
    """Spreads the base's decoder layers over the processes (FSDP2): each is gathered while it runs.

    Embedding, final norm and output layer stay whole everywhere, since the losses read them. Load the base onto the
    CPU first (`base_device`): no GPU then ever holds all of it.
    """
    if state().num_processes > 1:
        for layer in target.decoder_layers:
            fully_shard(layer)
    target.model.to(training_device())


def base_device(sharded: bool) -> str:
    """Where the base is loaded to."""
    return "cpu" if sharded else str(training_device())


def launch_processes(arguments: list[str], processes: int | None) -> None:
    """Becomes `torchrun` over `processes` when they are asked for and nobody has started them yet.

    arguments: what each process runs, behind `python`.
    """
    if processes and processes > 1 and "LOCAL_RANK" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        os.execv(sys.executable, [sys.executable, *launcher, *arguments])
