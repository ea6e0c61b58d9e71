"""Servers that run already, of which some may be down: those are set aside and tried again later."""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import SecretStr

from specdec.config import Sampling
from specdec.errors import ServerError
from specdec.serving.connect import Met, Wanted, meet
from specdec.synthesis.endpoint import Endpoint, Server

Say = Callable[[str], None]


def connect_servers(
    urls: Sequence[str],
    key: SecretStr | None,
    sampling: Sampling,
    say: Say,
    *,
    model_name: str | None,
    base: Path | None,
    engine: str,
    max_model_len: int | None,
    seeds: bool,
) -> list[Server]:
    """The servers at `urls`, in their order; at least one of them has answered a real request.

    The arguments are those of `Wanted`. Raises ServerError if none answers, and RequestRefused or ConfigError as
    soon as one says no for good (wrong key, other model, too small a context).
    """
    wanted = Wanted(sampling, key, engine, base, model_name, max_model_len, seeds)
    met = _meet_all(urls, wanted, say)
    _compare_names(list(met.values()), say)
    return [Server(url, _connect(url, wanted), met[url].endpoint if url in met else None) for url in urls]


def _connect(url: str, wanted: Wanted) -> Callable[[], Endpoint]:
    return lambda: meet(url, wanted).endpoint


def _meet_all(urls: Sequence[str], wanted: Wanted, say: Say) -> dict[str, Met]:
    met: dict[str, Met] = {}
    failures: dict[str, str] = {}
    for url, outcome in _at_once(functools.partial(meet, wanted=wanted), urls):
        if isinstance(outcome, ServerError):
            failures[url] = str(outcome)
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            met[url] = outcome
            say(f"using {outcome}")
    if not met:
        raise ServerError("none of the servers can be used: " + "; ".join(failures[url] for url in urls))
    for failure in failures.values():
        say(f"{failure}: set aside, will be tried again")
    return met


def _at_once(work: Callable[[str], Met], urls: Sequence[str]) -> Iterator[tuple[str, Met | Exception]]:
    """The outcome for each URL, as they come. In threads that nobody waits for: one server that is slow must not
    hold up the refusal of another, or Ctrl-C."""
    outcomes: queue.SimpleQueue[tuple[str, Met | Exception]] = queue.SimpleQueue()

    def call(url: str) -> None:
        try:
            outcomes.put((url, work(url)))
        except Exception as error:  # noqa: BLE001 - the caller raises it
            outcomes.put((url, error))

    for url in urls:
        threading.Thread(target=call, args=(url,), daemon=True).start()
    for _ in urls:
        yield outcomes.get()


def _compare_names(met: Sequence[Met], say: Say) -> None:
    if len({one.endpoint.model for one in met}) > 1:
        names = ", ".join(f"{one.endpoint.model} ({one.endpoint.url})" for one in met)
        say(f"warning: the servers know the base by different names, and must all serve the same one: {names}")
