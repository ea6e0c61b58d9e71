"""Several servers, or one that comes and goes: shared work, and nobody waits for what is dead."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from specdec.errors import ConfigError, RequestRefused, ServerEnded, ServerError
from specdec.synthesis import Endpoint, Patience, Server
from tests.synthesis.conftest import known, regenerated
from tests.synthesis.scripted import Scripted

QUESTION = "Hello"  # of the probe


def raising(error: Exception) -> Callable[[], Endpoint]:
    def connect() -> Endpoint:
        raise error

    return connect


def dead(url: str = "http://127.0.0.1:9", error: Exception | None = None) -> Server:
    return Server(url, raising(error or ServerError("no server answers there")), None)


def comes_back(server: Scripted, said: list[str] | None = None) -> Callable[[str], None]:
    """A run's `say`, at which a server that died listens again: not before somebody has seen that it is away."""

    def say(line: str) -> None:
        if said is not None:
            said.append(line)
        if f"{server.url} is set aside" in line:
            server.come_back()

    return say


def short(prompts: Any, count: int) -> list[dict[str, Any]]:
    """Conversations of one turn."""
    return [{**row, "messages": row["messages"][-2:]} for row in prompts(count)]


def test_a_server_twice_as_fast_answers_twice_as_much(scripted: Any, go: Any, prompts: Any) -> None:
    slow, fast = scripted(delay=0.16), scripted(delay=0.08)  # slow enough for a busy machine to keep up
    statistics, out = go([slow, fast], short(prompts, 150), concurrency=3)
    assert len(out) == slow.answered + fast.answered == 150
    assert 1.4 < fast.answered / slow.answered < 2.8
    shares = {url: lane["share"] for url, lane in statistics.figures()["servers"].items()}
    assert shares == {s.url: pytest.approx(s.answered / 150, abs=0.01) for s in (slow, fast)}


@pytest.mark.soak
def test_a_thousand_requests_in_flight(scripted: Any, go: Any, prompts: Any) -> None:
    most = [0]

    def plan(_last: str, _n: int) -> str:
        most[0] = max(most[0], 1 + sum(server.asked.values()) - server.answered)
        return "ok"

    server: Scripted = scripted(lambda last, n: plan(last, n), delay=1.5)
    patient = Patience(attempts=2, watch=60.0)
    statistics, out = go(server, short(prompts, 1400), concurrency=1000, patience=patient)
    assert (len(out), statistics.failures.total()) == (1400, 0)
    assert most[0] == 1000


def test_one_is_set_aside_tried_again_and_used_again(scripted: Any, go: Any, prompts: Any) -> None:
    said: list[str] = []
    steady = scripted(delay=0.02)
    back: list[int] = []

    def plan(last: str, _n: int) -> str:
        if flaky.answered >= 10 and not back:
            back.append(10)
            flaky.die()
        return "ok"

    flaky: Scripted = scripted(lambda last, n: plan(last, n), delay=0.01)
    statistics, out = go([steady, flaky], short(prompts, 200), concurrency=2, say=comes_back(flaky, said))
    assert len(out) == 200
    assert flaky.answered > 30, "it is used again"
    assert not statistics.failures
    assert [line for line in said if "is set aside: network" not in line and "set aside" in line]
    assert f"{flaky.url} answers again" in said
    assert statistics.figures()["servers"][flaky.url]["set_aside"] == 1


def test_one_that_is_dead_at_the_start_joins_later(scripted: Any, endpoint: Any, go: Any, prompts: Any) -> None:
    steady, late = scripted(delay=0.01), scripted(delay=0.01)
    tried: list[float] = []
    real = known(endpoint(late))

    def connect() -> Endpoint:
        tried.append(time.monotonic())
        if len(tried) < 3:
            raise ServerError("it still loads")
        return real.connect()

    said: list[str] = []
    _, out = go([steady, Server(late.url, connect, None)], short(prompts, 150), concurrency=2, say=said.append)
    assert len(out) == 150
    assert late.answered > 10
    assert f"{late.url} is set aside: it did not answer at the start; the others go on" in said


def test_all_dead_is_a_server_error_after_the_outage(go: Any, prompts: Any, recorded: Any, hasty: Patience) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"no server has answered .*127.0.0.1:9: no server answers there"):
        go([dead(), dead("http://127.0.0.1:7")], prompts(4), patience=hasty)
    assert hasty.outage * 0.9 < time.monotonic() - began < hasty.outage + 2
    assert recorded() == []


def test_a_connect_that_hangs_is_an_outage_too(go: Any, prompts: Any, hasty: Patience) -> None:
    began = time.monotonic()
    never: Any = threading.Event()
    with pytest.raises(ServerError, match="no server has answered"):
        go(Server("http://127.0.0.1:9", lambda: never.wait(30), None), prompts(4), patience=hasty)
    assert time.monotonic() - began < 3


def test_our_own_process_that_has_ended_is_told_at_once(scripted: Any, endpoint: Any, go: Any, prompts: Any) -> None:
    server: Scripted = scripted(lambda _last, _n: server.die() or "ok" if server.answered >= 3 else "ok")
    ended = Server(server.url, raising(ServerEnded("it has ended: out of memory")), endpoint(server))
    with pytest.raises(ServerEnded, match="out of memory"):
        go(ended, prompts(20))


@pytest.mark.parametrize("error", [ConfigError("another model"), ServerEnded("gone"), RequestRefused("HTTP 401")])
def test_one_that_is_gone_for_good_is_left_out(error: Exception, scripted: Any, go: Any, prompts: Any) -> None:
    said: list[str] = []
    steady = scripted()
    _, out = go([steady, dead(error=error)], prompts(20), say=said.append, concurrency=1)
    assert len(out) == 20
    assert f"http://127.0.0.1:9 is left out from here on: {error}" in said


def test_a_connect_that_raises_anything_at_all_ends_nothing(
    scripted: Any, go: Any, prompts: Any, hasty: Patience
) -> None:
    _, out = go([scripted(), dead(error=KeyError("data"))], prompts(20), concurrency=1)
    assert len(out) == 20
    with pytest.raises(ServerError, match="KeyError: 'data'"):
        go(dead(error=KeyError("data")), prompts(21), patience=hasty)


def test_a_key_that_expires_at_one_of_two(scripted: Any, go: Any, prompts: Any, recorded: Any) -> None:
    said: list[str] = []
    steady = scripted(delay=0.002)
    locked: Scripted = scripted(lambda _last, _n: "401" if locked.answered >= 5 else "ok", delay=0.002)
    statistics, out = go([locked, steady], prompts(40), say=said.append, concurrency=4)
    assert (len(out), statistics.failures.total()) == (40, 0)
    assert locked.answered >= 5
    assert sum("left out from here on: the server at" in line and "HTTP 401" in line for line in said) == 1


def test_a_key_that_expires_at_the_only_one(scripted: Any, go: Any, prompts: Any, recorded: Any) -> None:
    locked: Scripted = scripted(lambda _last, _n: "401" if locked.answered >= 20 else "ok", delay=0.002)
    with pytest.raises(RequestRefused, match="HTTP 401"):
        go(locked, prompts(40))
    assert recorded(), "what was answered is kept"
    assert all("row" in entry for entry in recorded())


@pytest.mark.parametrize("kills", ["at once", "late"])
def test_a_row_that_kills_the_server_is_recorded_and_the_others_are_answered(
    kills: str, scripted: Any, go: Any, prompts: Any
) -> None:
    rows = short(prompts, 40)
    poison = rows[5]["messages"][0]["content"]
    deaths: list[str] = []

    def plan(last: str, n: int) -> str:
        if last == poison:
            deaths.append(last)
            server._loop.call_later(0.0 if kills == "at once" else 0.02, server.die)
            return "hang"
        return "ok"

    server: Scripted = scripted(plan, delay=0.005)
    statistics, out = go(server, rows, say=comes_back(server))
    assert statistics.failures == {"server_lost": 1}
    assert [row["id"] for row in out] == [row["id"] for row in rows if row is not rows[5]]
    assert len(deaths) < 60


def test_the_last_row_kills_the_server_and_nothing_is_left_to_wait_for(
    scripted: Any, go: Any, prompts: Any, quick: Patience
) -> None:
    server: Scripted = scripted(lambda _last, _n: server.die() or "ok")
    once = dataclasses.replace(quick, attempts=1)
    statistics, _ = go(server, short(prompts, 1), patience=once)
    assert statistics.failures == {"server_lost": 1}


def test_rows_come_back_from_a_server_that_hangs_long_before_the_read_timeout(
    scripted: Any, go: Any, prompts: Any, quick: Patience
) -> None:
    patient = dataclasses.replace(quick, read=60.0, watch=0.05)
    steady = scripted(delay=0.01)

    def plan(_last: str, n: int) -> str:
        if hanging.answered >= 6:
            hanging.health = 503
            return "hang"
        return "ok"

    hanging: Scripted = scripted(plan)
    began = time.monotonic()
    _, out = go([hanging, steady], prompts(40), patience=patient, concurrency=4)
    assert len(out) == 40
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("action", ["500", "reset"])
def test_servers_that_connect_and_never_answer_do_not_loop_for_ever(
    action: str, scripted: Any, go: Any, prompts: Any, quick: Patience
) -> None:
    """Both answer the probe, and nothing else; one of them is mostly there while the other one is set aside."""
    flapping = [scripted(lambda last, _n: "ok" if last == QUESTION else action) for _ in range(2)]
    patient = dataclasses.replace(quick, outage=2.0)
    try:
        statistics, out = go(flapping, prompts(12), patience=patient)
    except ServerError:
        return
    assert out == []
    assert statistics.failures.total() == 12


def test_a_full_pool_of_requests_leaves_health_its_connection(
    scripted: Any, go: Any, prompts: Any, quick: Patience
) -> None:
    """64 requests in flight are all that a pool was made for; a look at /health came on top of them."""
    patient = dataclasses.replace(quick, watch=0.02, connect=2.0)  # below the delay
    server = scripted(delay=3.0)
    statistics, out = go(server, short(prompts, 64), concurrency=64, patience=patient)
    assert len(out) == 64
    assert server.health_looks > 5
    assert statistics.figures()["servers"][server.url]["set_aside"] == 0


def test_what_a_server_can_do_is_found_again_when_it_is_back(
    scripted: Any, go: Any, prompts: Any, endpoint: Any
) -> None:
    """It comes back under another model name and without a field; requests follow."""
    other: list[Endpoint] = []
    server: Scripted = scripted(lambda _last, _n: "ok", delay=0.002)
    first = endpoint(server, fields={"top_k": -1})
    second = dataclasses.replace(endpoint(server), most_in_flight=2)

    def plan(_last: str, _n: int) -> str:
        if server.answered >= 5 and not other:
            other.append(second)
            server.die()
        return "ok"

    server.plan = plan
    rows = short(prompts, 30)
    _, out = go(Server(server.url, lambda: second, first), rows, say=comes_back(server))
    assert [row["messages"] for row in out] == [regenerated(row) for row in rows]
    assert "top_k" in server.bodies[0]
    assert "top_k" not in server.bodies[-1]


def test_nothing_to_ask_needs_no_server(go: Any, prompts: Any) -> None:
    assert go(dead(), [])[1] == []


def test_answers_that_come_all_together_still_raise_the_limit(
    scripted: Any, go: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a batching server do: the slot that one of them frees is not yet taken when the next one comes."""
    monkeypatch.setattr("specdec.synthesis.limit.LEAST_SECONDS", 0.1)
    server = scripted(beat=0.6)  # slow enough for a busy machine to keep up with twice as many
    statistics, out = go(server, short(prompts, 500), concurrency=None)
    assert len(out) == 500
    assert statistics.figures()["servers"][server.url]["in_flight"] > 32


def test_no_row_fails_where_a_server_only_wants_less(scripted: Any, go: Any, prompts: Any) -> None:
    """It takes 4 at once, and an answer takes longer than all tries of a request that is refused for room."""
    server = scripted(delay=0.15, room=4)
    statistics, out = go(server, short(prompts, 40), concurrency=None)
    assert (len(out), statistics.failures.total()) == (40, 0)
    figures = statistics.figures()["servers"][server.url]
    assert figures["set_aside"] == 0
    assert figures["in_flight"] < 32


def test_a_server_that_says_only_429_is_an_outage(
    scripted: Any, go: Any, prompts: Any, recorded: Any, hasty: Patience
) -> None:
    with pytest.raises(
        ServerError, match=r"no server has answered .*(nothing but HTTP 429|failed at the first request)"
    ):
        go(scripted(room=0), short(prompts, 10), patience=hasty)
    assert recorded() == []


def test_a_black_hole_takes_no_row_with_it(scripted: Any, go: Any, prompts: Any) -> None:
    """500 for everything and a /health that is fine: one of two servers, from the fifth answer on."""
    steady = scripted(delay=0.05)  # slow enough that the other is met, however busy the machine
    hole: Scripted = scripted(lambda _last, _n: "500" if hole.answered >= 5 else "ok")
    statistics, out = go([steady, hole], short(prompts, 60), concurrency=8)
    assert (len(out), statistics.failures.total()) == (60, 0)
    assert hole.health_looks > 0
    assert statistics.figures()["servers"][hole.url]["set_aside"] >= 1


def test_an_outage_is_not_ended_by_connections(scripted: Any, go: Any, prompts: Any, hasty: Patience) -> None:
    """Each connect succeeds, and each row after it hangs and fails with an ill /health; no row ever gives up."""
    server = scripted(lambda last, _n: "ok" if last == QUESTION else "hang")
    server.health = 503
    endless = dataclasses.replace(hasty, attempts=10**6, first_wait=0.1, longest_wait=0.1, read=0.1, watch=60.0)
    began = time.monotonic()
    with pytest.raises(ServerError, match="no server has answered"):
        go(server, short(prompts, 10), patience=endless)
    assert time.monotonic() - began < 10


def test_requests_that_fail_together_look_at_health_once(
    scripted: Any, go: Any, prompts: Any, quick: Patience
) -> None:
    server = scripted(lambda _last, n: "500" if n == 0 else "ok", beat=0.3)
    patient = dataclasses.replace(quick, watch=60.0)
    _, out = go(server, short(prompts, 20), concurrency=20, patience=patient)
    assert len(out) == 20
    assert server.health_looks <= 3


def test_a_server_of_another_base_that_comes_later_is_left_out(
    scripted: Any, go: Any, prompts: Any, endpoint: Callable[..., Endpoint]
) -> None:
    said: list[str] = []
    right, wrong = scripted(delay=0.02), scripted()
    other = endpoint(wrong, question_ids=(1, 2, 3))
    statistics, out = go([right, Server(wrong.url, lambda: other, None)], short(prompts, 60), say=said.append)
    assert (len(out), wrong.answered, statistics.failures.total()) == (60, 0, 0)
    assert any("left out" in line and "renders prompts to other tokens" in line for line in said)


@pytest.mark.parametrize("status", ["404", "405", "307"])
def test_a_server_whose_model_is_gone_is_set_aside(status: str, scripted: Any, go: Any, prompts: Any) -> None:
    steady = scripted(delay=0.02)
    gone: Scripted = scripted(lambda _last, _n: status if gone.answered >= 5 else "ok")
    statistics, out = go([steady, gone], short(prompts, 80), share=0.0, concurrency=1)
    assert (len(out), statistics.failures.total()) == (80, 0)
    assert statistics.figures()["servers"][gone.url]["set_aside"] >= 1
