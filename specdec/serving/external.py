"""Servers that run already, of which some may be down: those are set aside and tried again later."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from pydantic import SecretStr

from specdec.config import Sampling
from specdec.errors import ServerError
from specdec.serving.connect import Met, Wanted, meet
from specdec.synthesis.endpoint import Endpoint, Server

MEETING_SECONDS = 300.0  # that one meeting may take; its first request may compile kernels
OTHERS_SECONDS = 30.0  # from the start, that a server which has answered waits for the others

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
    soon as one says no for good (wrong key, other model, too small a context). One that is slow to say anything is
    left for later.
    """
    wanted = Wanted(sampling, key, engine, base=base, model_name=model_name, max_model_len=max_model_len, seeds=seeds)
    doors = [Door(url, wanted, say) for url in urls]
    met = _meet_all(doors, say)
    _compare_names(list(met.values()), say)
    return [Server(door.url, door.connect, met[door.url].endpoint if door.url in met else None) for door in doors]


class Door:
    """Where one server is met, in a thread that nobody has to wait for.

    There is one meeting at a time: a server that sends a byte now and then may hold its thread for ever, and who
    asks again waits for that same meeting.
    """

    def __init__(self, url: str, wanted: Wanted, say: Say) -> None:
        self.url, self._wanted, self._say = url, wanted, say
        self._meeting: Future[Met] | None = None
        self._told = False

    def knock(self) -> "Future[Met]":
        """The meeting that is under way, or a new one."""
        if self._meeting is None or self._meeting.done():
            self._meeting = Future()
            threading.Thread(target=self._meet, args=(self._meeting,), daemon=True).start()
        return self._meeting

    def _meet(self, meeting: "Future[Met]") -> None:
        try:
            meeting.set_result(meet(self.url, self._wanted))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            meeting.set_exception(error)

    def connect(self) -> Endpoint:
        """As `Server.connect`."""
        meeting = self.knock()
        wait([meeting], MEETING_SECONDS)
        if not meeting.done():
            raise ServerError(self.silent(MEETING_SECONDS))
        self.tell(meeting.result())
        return meeting.result().endpoint

    def tell(self, met: Met) -> None:
        """Says once what a person should know of the server."""
        for note in () if self._told else met.notes:
            self._say(note)
        self._told = True

    def silent(self, seconds: float) -> str:
        """What is wrong with a server that was not met in time."""
        return f"the server at {self.url} has not answered a first request in {seconds:.0f} s"


def _meet_all(doors: Sequence[Door], say: Say) -> dict[str, Met]:
    met: dict[str, Met] = {}
    failures: dict[str, str] = {}
    for door, meeting in _as_they_come(doors, enough=lambda: bool(met)):
        error = meeting.exception()
        if isinstance(error, ServerError):
            failures[door.url] = str(error)
        elif error:
            raise error
        else:
            met[door.url] = meeting.result()
            say(f"using {met[door.url]}")
            door.tell(met[door.url])
    waited = OTHERS_SECONDS if met else MEETING_SECONDS
    absent = [failures.get(door.url, door.silent(waited)) for door in doors if door.url not in met]
    if not met:
        raise ServerError("none of the servers can be used: " + "; ".join(absent))
    for failure in absent:
        say(f"{failure}: set aside, will be tried again")
    return met


def _as_they_come(doors: Sequence[Door], enough: Callable[[], bool]) -> Iterator[tuple[Door, "Future[Met]"]]:
    """The meetings that end in time: in that of a meeting, or in less once there are `enough`."""
    began, pending = time.monotonic(), {door.knock(): door for door in doors}
    while pending:
        left = began + (OTHERS_SECONDS if enough() else MEETING_SECONDS) - time.monotonic()
        done = wait(pending, max(0.0, left), FIRST_COMPLETED).done
        if not done:
            return
        for meeting in done:
            yield pending.pop(meeting), meeting


def _compare_names(met: Sequence[Met], say: Say) -> None:
    if len({one.endpoint.model for one in met}) > 1:
        names = ", ".join(f"{one.endpoint.model} ({one.endpoint.url})" for one in met)
        say(f"warning: the servers know the base by different names, and must all serve the same one: {names}")
