"""How each engine is started: its command line, and its environment, which is where the key goes."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdec.config import Synthesize
from specdec.errors import ConfigError

HOST = "127.0.0.1"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
TRANSFORMERS_KEY = "SPECDEC_SERVER_KEY"
CACHE_PAGE = 256  # tokens in one block of the paged cache of transformers
CPU_REQUESTS = 64  # that this cache has room for, on a CPU
VLLM_PYTHON = "SPECDEC_VLLM_PYTHON"


@dataclass(frozen=True)
class Launch:
    """A server that is ready to start.

    seeds: it may be sent a seed a request. most_in_flight: requests that its cache has room for; None where it
    queues what does not fit.
    """

    command: list[str]
    environment: dict[str, str]
    seeds: bool = False
    most_in_flight: int | None = None


def launch(engine: str, model: Path, settings: Synthesize, port: int, key: str, concurrency: int | None) -> Launch:
    """The launch of `vllm` or `transformers`. Raises ConfigError where the engine is not installed."""
    if engine == "vllm":
        return _vllm(model, settings, port, key)
    return _transformers(model, settings, port, key, concurrency or CPU_REQUESTS)


def _transformers(model: Path, settings: Synthesize, port: int, key: str, concurrency: int) -> Launch:
    import torch  # here, since who uses a running server need not wait for it

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = ["--host", HOST, "--port", str(port), "--device", device, "--dtype", settings.dtype]
    if device == "cpu":  # else the cache takes 60 % of the machine's memory
        pages = concurrency * math.ceil(settings.max_model_len / CACHE_PAGE)
        options += ["--cb-num-blocks", str(pages)]
    quiet = ["--log-level", "error"]  # else two lines a request, for a week
    command = [sys.executable, "-m", "specdec.serving.transformers_server", str(model)]
    path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    environment = _environment(PYTHONPATH=path, **{TRANSFORMERS_KEY: key})
    # Threads that spin while they wait fight for the cores with us and with each other (measured: 49 tokens/s
    # against 450 on two busy cores).
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A seed there sets the whole server's generator: among other requests it says nothing about a row.
    command += [*options, "--continuous-batching", *quiet, *settings.engine_args]
    return Launch(command, environment, most_in_flight=concurrency if device == "cpu" else None)


def _vllm(model: Path, settings: Synthesize, port: int, key: str) -> Launch:
    python = vllm_python()
    options = ["--host", HOST, "--port", str(port), "--dtype", settings.dtype]
    options += ["--max-model-len", str(settings.max_model_len), "--generation-config", "vllm"]
    cuda = _answers([python, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"])
    environment = _environment(VLLM_API_KEY=key, VLLM_NO_USAGE_STATS="1")
    if not cuda:
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # The CPU build's engine dies of a seed with a temperature above 0.
    return Launch([*vllm_command(python, model), *options, *settings.engine_args], environment, cuda)


def vllm_python() -> str:
    """The python that vLLM is run with: that of `SPECDEC_VLLM_PYTHON`, or ours."""
    return os.environ.get(VLLM_PYTHON) or sys.executable


def vllm_installed() -> bool:
    """Whether that python has vLLM."""
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    return _answers([vllm_python(), "-c", find])


def vllm_command(python: str, model: Path) -> list[str]:
    """`vllm serve MODEL` where that command works, else the module behind it (some builds ship a broken
    command)."""
    if not vllm_installed():
        raise ConfigError(
            f"synthesize.engine is vllm, and vLLM is not installed for {python}: `pip install vllm` into "
            f"a virtual environment of its own and set {VLLM_PYTHON} to its python, or set synthesize.engine "
            "to transformers, or SPECDEC_SERVER_URLS to servers that run"
        )
    script = Path(python).with_name("vllm")
    if script.exists() and _answers([str(script), "--version"]):
        return [str(script), "serve", str(model)]
    return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]


def _environment(**settings: str) -> dict[str, str]:
    """Ours, without the key of another server, and without a look at the hub: the base is a local folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "SPECDEC_API_KEY"}
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **settings}


def _answers(command: Sequence[str]) -> bool:
    """Whether a command runs and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
