"""Starting one training in several processes of this machine, and ending with one of them when it fails.

Each process is the same command with LOCAL_RANK set; torch's elastic agent starts, watches and ends them. What went
wrong first is told once, by the process that started them, with the exit code it had. Ctrl-C reaches this process
alone (the others have sessions of their own): it passes the first one on and waits, and ends them with the second.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from specdec.errors import LAUNCHER, ConfigError, SpecdecError, told_by
from specdec.training.interruption import Interruption, tell_first

_PR_SET_PDEATHSIG = 1
_PID = f"{LAUNCHER}_PID"  # in the environment of the processes: which one started them


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
    if _PID in os.environ:
        _end_with(int(os.environ[_PID]))
    if not processes or processes == 1 or "LOCAL_RANK" in os.environ:
        return
    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(f"SPECDEC_PROCESSES is {processes}, and this machine has {torch.cuda.device_count()} GPUs")
    with tempfile.TemporaryDirectory(prefix="specdec-") as folder:
        os.environ.update({LAUNCHER: folder, _PID: str(os.getpid())})
        # As torchrun does: each process would take all cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        interruption = Interruption(lambda: _pass_on(interruption))
        try:
            with interruption:
                _run([argument.replace("$", "$$") for argument in arguments], processes, folder)  # torch substitutes
        except ChildFailedError as error:
            failure = error.get_first_failure()[1]
            if interruption.told and failure.exitcode in (130, -signal.SIGTERM):
                raise KeyboardInterrupt from None
            _raise(folder, failure)
        except SignalException:
            raise KeyboardInterrupt from None
        finally:
            del os.environ[LAUNCHER], os.environ[_PID]
    sys.exit(0)


def _run(arguments: list[str], processes: int, folder: str) -> None:
    for name in logging.root.manager.loggerDict:  # we tell it ourselves; each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    heard = ["SIGHUP", "SIGQUIT"]  # of SIGTERM and SIGINT we know ourselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"specdec-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        # Under nohup SIGHUP stays ignored.
        signals_to_handle=",".join(s for s in heard if signal.getsignal(signal.Signals[s]) != signal.SIG_IGN),
    )
    elastic_launch(config, sys.executable)(*arguments)


def _pass_on(interruption: Interruption) -> None:
    """To the processes, which know whether they have a step to finish. Those that still import end at once."""
    started = psutil.Process().children()
    if not started:
        interruption.end()
    tell_first()
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.terminate()


def _raise(folder: str, failure: ProcessFailure) -> None:
    """Raises what the first process said that failed; exits where it has printed a traceback of its own."""
    if told := told_by(failure.pid, folder):
        raise ProcessFailed(*told) from None
    if failure.exitcode >= 0:
        sys.exit(failure.exitcode)
    hint = " (out of memory?)" if failure.signal_name() == "SIGKILL" else ""
    raise ProcessFailed(
        f"process {failure.local_rank} was ended by {failure.signal_name()}{hint}: run the same command again",
        128 - failure.exitcode,
    ) from None


def _end_with(launcher: int) -> None:
    """This process gets SIGTERM when the one that started it ends, however and whenever that happens: also before
    this line, while it was still importing. Linux only.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher:
        os.kill(os.getpid(), signal.SIGTERM)
