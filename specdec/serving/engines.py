"""How each engine is started: its command line, and its environment, which is where the key goes."""

import math
import os
import sys
from pathlib import Path

from specdec.config import Synthesize
from specdec.errors import ConfigError
from specdec.serving.launch import HOST, Launch, server_environment
from specdec.serving.vllm import Serving, vllm_launch

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
TRANSFORMERS_KEY = "SPECDEC_SERVER_KEY"
CACHE_PAGE = 256  # tokens in one block of the paged cache of transformers
CPU_REQUESTS = 64  # that this cache has room for, on a CPU


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
    environment = server_environment(PYTHONPATH=path, **{TRANSFORMERS_KEY: key})
    # Threads that spin while they wait fight for the cores with us and with each other (measured: 49 tokens/s
    # against 450 on two busy cores).
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A seed there sets the whole server's generator: among other requests it says nothing about a row.
    command += [*options, "--continuous-batching", *quiet, *settings.engine_args]
    return Launch(command, environment, most_in_flight=concurrency if device == "cpu" else None)


def _vllm(model: Path, settings: Synthesize, port: int, key: str) -> Launch:
    try:
        return vllm_launch(
            Serving(model, settings.dtype, settings.max_model_len, tuple(settings.engine_args)), port, key
        )
    except ConfigError as error:
        raise ConfigError(
            f"synthesize.engine is vllm, and {error}, or set synthesize.engine to transformers, or "
            "SPECDEC_SERVER_URLS to servers that run"
        ) from None
