"""A server that we start ourselves: on a free port, with a fresh key, ready when it has answered."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, ServerEnded, ServerError
from specdec.serving.connect import Met, Wanted, meet
from specdec.serving.engines import HOST, launch
from specdec.serving.process import ServerProcess, running
from specdec.synthesis.endpoint import Server

START_SECONDS = 1800.0  # a large base on many GPUs takes its time
SAY_SECONDS, POLL_SECONDS = 5.0, 0.25

Say = Callable[[str], None]


@contextlib.contextmanager
def started(
    engine: str,
    model: Path,
    settings: Synthesize,
    environment: Environment,
    log: Path,
    say: Say,
    start_seconds: float,
) -> Iterator[Server]:
    """A server of `model` that has answered one real request, for as long as the block lasts.

    Raises ConfigError (engine not installed, port in use), ServerError (did not start in `start_seconds`, died) or
    RequestRefused. A ServerError of the block gets the log's last lines where the server has died of it.
    """
    key = SecretStr(secrets.token_urlsafe(32))
    port = _port(environment.port)
    url = f"http://{HOST}:{port}"
    plan = launch(engine, model, settings, port, key.get_secret_value(), environment.concurrency)
    wanted = Wanted(
        sampling=settings.sampling,
        key=key,
        engine=engine,
        ours=True,
        base=model,
        max_model_len=settings.max_model_len,
        seeds=plan.seeds,
        most_in_flight=plan.most_in_flight,
    )
    with running(plan.command, plan.environment, log) as process:
        say(f"starting {engine} at {url}, log {log}")
        _wait(process, url, say, start_seconds)
        met = _connect(process, url, wanted)
        for line in (f"{engine} is ready at {url}", *met.notes):
            say(line)
        with _last_words(process):
            yield Server(url, lambda: _connect(process, url, wanted).endpoint, met.endpoint)


def _connect(process: ServerProcess, url: str, wanted: Wanted) -> Met:
    process.check("and cannot be used any more")
    with _last_words(process):
        met = meet(url, wanted)
    process.check("at its first request")  # else another program on this port has answered
    return met


def _port(wanted: int | None) -> int:
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


def _wait(process: ServerProcess, url: str, say: Say, limit: float) -> None:
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
def _last_words(process: ServerProcess) -> Iterator[None]:
    """Adds the log's last lines to a ServerError when it is our server that has died."""
    try:
        yield
    except ServerEnded:
        raise
    except ServerError as error:
        if process.exit_code(patience=1.0) is None:  # a connection breaks a moment before its process ends
            raise
        raise ServerEnded(f"{error}; {process.last_words()}") from None
