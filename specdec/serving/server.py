"""One door to model servers: `serve` starts one, or takes those that `SPECDEC_SERVER_URLS` names."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from specdec.config import Environment, Synthesize
from specdec.serving.choice import choose
from specdec.serving.external import connect_servers
from specdec.serving.launch import START_SECONDS
from specdec.serving.own import started
from specdec.synthesis.endpoint import Server

Say = Callable[[str], None]


@contextlib.contextmanager
def serve(
    model: Path,
    settings: Synthesize,
    environment: Environment,
    log: Path,
    say: Say,
    start_seconds: float = START_SECONDS,
) -> Iterator[list[Server]]:
    """Servers of `model`, for as long as the block lasts; at least one has answered a real request.

    Raises ConfigError (engine not installed, port in use, settings that do not fit), ServerError (did not start,
    died, none answers) or RequestRefused.
    """
    if environment.server_urls:
        say("using the servers of SPECDEC_SERVER_URLS; none is started")
        yield _external(model, settings, environment, say)
        return
    engine, why = choose(settings, environment)
    say(f"engine: {engine} ({why})")
    with started(engine, model.resolve(), settings, environment, log, say, start_seconds) as server:
        yield [server]


def _external(model: Path, settings: Synthesize, environment: Environment, say: Say) -> list[Server]:
    return connect_servers(
        environment.server_urls,
        environment.api_key,
        settings.sampling,
        say,
        model_name=environment.server_model,
        base=model.resolve(),
        engine=settings.engine,
        max_model_len=settings.max_model_len,
        seeds=environment.server_seeds,
    )
