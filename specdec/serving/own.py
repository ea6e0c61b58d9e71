"""A server that we start ourselves: on a free port, with a fresh key, ready when it has answered."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from specdec.config import Environment, Synthesize
from specdec.serving.connect import Met, Wanted, meet
from specdec.serving.engines import launch
from specdec.serving.launch import HOST, Say, free_port, last_words, wait_until_ready
from specdec.serving.process import ServerProcess, running
from specdec.synthesis.endpoint import Server


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
    port = free_port(environment.port)
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
        wait_until_ready(process, url, say, start_seconds)
        met = _connect(process, url, wanted)
        for line in (f"{engine} is ready at {url}", *met.notes):
            say(line)
        with last_words(process):
            yield Server(url, lambda: _connect(process, url, wanted).endpoint, met.endpoint)


def _connect(process: ServerProcess, url: str, wanted: Wanted) -> Met:
    process.check("and cannot be used any more")
    with last_words(process):
        met = meet(url, wanted)
    process.check("at its first request")  # else another program on this port has answered
    return met
