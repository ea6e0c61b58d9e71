"""Starting one training in several processes of this machine, and ending with one of them when it fails.

Each process is the same command with LOCAL_RANK set; torch's elastic agent starts, watches and ends them. What went
wrong first is told once, by the process that started them, with the exit code it had.
"""

import logging
import os
import sys

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from specdec.errors import LAUNCHED, ConfigError, SpecdecError


class ProcessFailed(SpecdecError):
    """One of several processes failed; the others were ended."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def launch_processes(arguments: list[str], processes: int | None) -> None:
    """Runs `python arguments` as `processes` processes and exits with 0, when they are asked for and nobody has
    started them yet; else it does nothing.

    Raises ConfigError when there are fewer GPUs, ProcessFailed with the first failure, KeyboardInterrupt when it is
    told to end.
    """
    if not processes or processes == 1 or "LOCAL_RANK" in os.environ:
        return
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(f"SPECDEC_PROCESSES is {processes}, and this machine has {torch.cuda.device_count()} GPUs")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we tell it ourselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{LAUNCHED}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise _failed(error.get_first_failure()[1]) from None
    except SignalException:
        raise KeyboardInterrupt from None
    sys.exit(0)


def _failed(failure: ProcessFailure) -> ProcessFailed:
    if os.path.isfile(failure.error_file):
        return ProcessFailed(failure.message, failure.exitcode)
    rank = failure.local_rank
    if failure.exitcode < 0:
        hint = " (out of memory?)" if failure.signal_name() == "SIGKILL" else ""
        return ProcessFailed(
            f"process {rank} was ended by {failure.signal_name()}{hint}: run the same command again, it goes on from "
            "the last checkpoint",
            128 - failure.exitcode,
        )
    return ProcessFailed(f"process {rank} failed, its error is above", failure.exitcode)
