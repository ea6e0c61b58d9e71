"""What starting any server takes: a command line and its environment, a free port, and waiting until it is ready."""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx

from specdec.errors import ConfigError, ServerEnded, ServerError
from specdec.serving.process import ServerProcess

HOST = "127.0.0.1"
# The key of another server; and our place among several processes, as torchrun tells it, threads included.
_OURS_ALONE = re.compile("SPECDEC_API_KEY|(LOCAL_)?(RANK|WORLD_SIZE)|(GROUP|ROLE|MASTER|TORCHELASTIC)_.*")
START_SECONDS = 1800.0  # a large base on many GPUs takes its time
SAY_SECONDS, POLL_SECONDS = 5.0, 0.25

Say = Callable[[str], None]


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


def server_environment(**settings: str) -> dict[str, str]:
    """Ours, without the key of another server, without our place among several processes, and without a look at the
    hub: the base is a local folder."""
    inherited = {name: value for name, value in os.environ.items() if not _OURS_ALONE.fullmatch(name)}
    if "RANK" in os.environ:
        inherited.pop("OMP_NUM_THREADS", None)
    return {**inherited, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **settings}


def answers(command: Sequence[str]) -> bool:
    """Whether a command runs and exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def free_port(wanted: int | None) -> int:
    """A port that is free now: the wanted one, or any."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, wanted or 0))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"port {wanted} cannot be used ({error}): set SPECDEC_PORT to a free one, or unset it"
            ) from None
        port: int = listener.getsockname()[1]
    return port


def wait_until_ready(process: ServerProcess, url: str, say: Say, limit: float) -> None:
    """Until /health answers. Raises ServerError as soon as the server has ended, or after `limit` seconds."""
    began = said = time.monotonic()
    while not _healthy(url):
        process.check("before it was ready")
        now = time.monotonic()
        if now - began > limit:
            raise ServerError(f"the server was not ready after {limit:.0f} s; {process.last_words()}")
        if now - said >= SAY_SECONDS:
            said = now
            say(f"waiting for the server ({now - began:.0f} s)")
        time.sleep(POLL_SECONDS)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def last_words(process: ServerProcess) -> Iterator[None]:
    """Adds the log's last lines to a ServerError when it is our server that has died."""
    try:
        yield
    except ServerEnded:
        raise
    except ServerError as error:
        if process.exit_code(patience=1.0) is None:  # a connection breaks a moment before its process ends
            raise
        raise ServerEnded(f"{error}; {process.last_words()}") from None
