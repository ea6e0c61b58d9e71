"""One door to a model server: `serve` starts one, or takes the one that `SPECDEC_SERVER_URL` names."""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.errors import ConfigError, ServerError
from specdec.serving.engines import HOST, Launch, launch
from specdec.serving.external import served_model
from specdec.serving.process import ServerProcess, running
from specdec.synthesis import Capabilities, Endpoint, probe, wished_fields

START_SECONDS = 1800.0  # a large base on many GPUs takes its time
SAY_SECONDS, POLL_SECONDS = 5.0, 0.25

Say = Callable[[str], None]


@contextlib.contextmanager
def serve(
    model: Path,
    settings: Synthesize,
    environment: Environment,
    log: Path,
    say: Say,
    start_seconds: float = START_SECONDS,
) -> Iterator[Endpoint]:
    """A server of `model` that has answered one real request, for as long as the block lasts.

    Raises ConfigError (engine not installed, port in use), ServerError (did not start, died) or
    RequestRefused.
    """
    wished = wished_fields(settings.engine, model, settings.sampling)
    if environment.server_url:
        endpoint = _external(model, settings, environment)
        say(f"using the server at {endpoint.url}, model {endpoint.model}")
        yield probe(endpoint, wished, settings.sampling)
        return
    key = SecretStr(secrets.token_urlsafe(32))
    port = _port(environment.port)
    plan = launch(model.resolve(), settings, port, key.get_secret_value(), environment.concurrency)
    with running(plan.command, plan.environment, log) as server:
        endpoint = _own(model, settings, plan, port, key)
        _wait(server, endpoint, say, start_seconds)
        with _last_words(server):
            endpoint = probe(endpoint, wished, settings.sampling)
            server.check("at its first request")  # else another program on this port has answered
            say(f"{settings.engine} is ready at {endpoint.url}")
            yield endpoint


def _external(model: Path, settings: Synthesize, environment: Environment) -> Endpoint:
    assert environment.server_url is not None
    url = environment.server_url.removesuffix("/v1")
    endpoint = Endpoint(url, str(model.resolve()), settings.engine, environment.api_key)
    name = served_model(endpoint, model.resolve())
    return Endpoint(url, name, settings.engine, environment.api_key)


def _own(model: Path, settings: Synthesize, plan: Launch, port: int, key: SecretStr) -> Endpoint:
    able = Capabilities(seeds=plan.seeds)
    return Endpoint(f"http://{HOST}:{port}", str(model.resolve()), settings.engine, key, able)


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


def _wait(server: ServerProcess, endpoint: Endpoint, say: Say, limit: float) -> None:
    """Until /health answers. Raises ServerError as soon as the server has ended, or after `limit` seconds."""
    began = said = time.monotonic()
    say(f"starting {endpoint.engine} at {endpoint.url}, log {server.log}")
    while not _healthy(endpoint):
        server.check("before it was ready")
        now = time.monotonic()
        if now - began > limit:
            raise ServerError(f"the server was not ready after {limit:.0f} s; {server.last_words()}")
        if now - said >= SAY_SECONDS:
            said = now
            say(f"waiting for {endpoint.engine} ({now - began:.0f} s)")
        time.sleep(POLL_SECONDS)


def _healthy(endpoint: Endpoint) -> bool:
    try:
        return httpx.get(f"{endpoint.url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def _last_words(server: ServerProcess) -> Iterator[None]:
    """Adds the log's last lines to a ServerError when it is our server that has died."""
    try:
        yield
    except ServerError as error:
        if server.exit_code(patience=1.0) is None:  # a connection breaks a moment before its process ends
            raise
        raise ServerError(f"{error}; {server.last_words()}") from None
