"""One training in several processes (`torchrun`, `accelerate launch`): who writes, and sums over all of them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard

from specdec.errors import SpecdecError
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


def passes_of_each(count: int, batch_size: int) -> int:
    """Batches of the process that has most of `count` items."""
    return math.ceil(math.ceil(count / state().num_processes) / batch_size)


def sum_over_processes(value: Tensor) -> Tensor:
    """The same on every process."""
    if not distributed.is_initialized():
        return value
    total = value.detach().clone().to(state().device)
    distributed.all_reduce(total)
    return total.to(value.device)


def told_by_first(ask: Callable[[], str]) -> str:
    """What the first process finds out, on every process. Its SpecdecError is raised by all of them."""
    answer: list[Any] = [None]
    if is_main():
        try:
            answer = [ask()]
        except SpecdecError as error:
            answer = [error]
    if distributed.is_initialized():
        distributed.broadcast_object_list(answer)
    if isinstance(answer[0], SpecdecError):
        raise answer[0]
    return str(answer[0])


def training_device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    return torch.device(state().device)


def shard_base(target: Target) -> None:
    """Spreads the base's decoder layers over the processes (FSDP2): each is gathered while it runs.

    Embedding, final norm and output layer stay whole everywhere, since the losses read them. A pass of the base then
    needs all processes: each must make as many. Load the base onto the CPU
    first (`base_device`): no GPU then ever holds all of it.
    """
    if state().num_processes > 1:
        for layer in target.decoder_layers:
            fully_shard(layer, reshard_after_forward=True)  # each is a root of its own, which would stay gathered
    target.model.to(training_device())


def base_device(sharded: bool) -> str:
    """Where the base is loaded to."""
    return "cpu" if sharded else str(training_device())
