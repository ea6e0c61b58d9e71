"""One request: its tries, the waits between them, and what is made of strange answers."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import time
from typing import Any

import httpx
import pytest

from specdec.synthesis import Endpoint, Patience
from specdec.synthesis.answer import BadAnswer, parse_answer
from specdec.synthesis.client import Client, MayPass, read_json
from specdec.synthesis.client import _retry_after as retry_after


def test_a_row_is_tried_so_many_times_and_then_recorded(
    scripted: Any, go: Any, prompts: Any, recorded: Any, quick: Patience
) -> None:
    rows = prompts(12)
    bad = rows[3]["messages"][-2]["content"]
    server = scripted(lambda last, _n: "500" if last == bad else "ok")
    statistics, out = go(server, rows)
    assert (statistics.failures, len(out)) == ({"http_500": 1}, 11)
    assert server.asked[bad] == quick.attempts
    assert statistics.figures()["retries"] == quick.attempts - 1


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 400, 413, 422, 501])
def test_only_what_may_pass_is_tried_again(status: int, scripted: Any, go: Any, prompts: Any) -> None:
    passes = status in (408, 409, 425, 429) or status >= 500
    server = scripted(lambda _last, n: "ok" if n else str(status))
    statistics, out = go(server, prompts(1))
    assert (len(out), statistics.failures) == ((1, {}) if passes else (0, {f"http_{status}": 1}))
    assert server.asked.total() == 1 + passes


def test_it_waits_between_tries(scripted: Any, go: Any, prompts: Any, quick: Patience) -> None:
    slow = dataclasses.replace(quick, first_wait=0.2, longest_wait=1.0)
    began = time.monotonic()
    go(scripted(lambda _last, n: "500" if n < 2 else "ok"), prompts(2)[1:], patience=slow)
    assert time.monotonic() - began > 2 * (0.1 + 0.2), "two turns of three tries"


@pytest.mark.parametrize(("action", "read", "total"), [("hang", 0.1, 4.0), ("drip", 4.0, 0.3)])
def test_silence_and_length_have_each_a_limit(
    action: str, read: float, total: float, scripted: Any, go: Any, prompts: Any, hasty: Patience
) -> None:
    rows = prompts(4)
    bad = rows[3]["messages"][-2]["content"]
    patient = dataclasses.replace(hasty, attempts=2, read=read, total=total)
    began = time.monotonic()
    statistics, out = go(scripted(lambda last, _n: action if last == bad else "ok"), rows, patience=patient)
    assert (statistics.failures, len(out)) == ({"timeout": 1}, 3)
    assert time.monotonic() - began < 5


def test_an_answer_may_come_slowly_within_the_limits(scripted: Any, go: Any, prompts: Any, quick: Patience) -> None:
    """`read` is of one silence and not of all of them together."""
    patient = dataclasses.replace(quick, read=0.5)
    statistics, out = go(scripted(lambda _last, _n: "drip"), prompts(1), patience=patient)
    assert (len(out), statistics.failures.total()) == (1, 0)


def test_connecting_has_a_limit(hasty: Patience) -> None:
    """A server whose queue of connections is full lets a client wait for minutes."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        patient = dataclasses.replace(hasty, connect=0.2, read=60.0, total=60.0)
        client = Client(Endpoint(f"http://127.0.0.1:{full.getsockname()[1]}", "base", "vllm"), patient)
        began = time.monotonic()
        with pytest.raises(MayPass, match="ConnectTimeout") as caught:
            asyncio.run(client.post("/v1/chat/completions", {}))
        assert caught.value.kind == "timeout"
        assert time.monotonic() - began < 5


def test_waits_double_up_to_the_longest_and_are_never_in_step() -> None:
    patience = Patience(first_wait=0.5, longest_wait=20.0)
    for attempt, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (7, 20.0), (10**6, 20.0)):
        waits = [patience.wait(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(set(waits)) > 100


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("3", 3.0), ("0", None), ("600", 20.0), ("-5", None), ("nan", None), ("inf", 20.0), ("Wed, 21 Oct", None)],
)
def test_retry_after_is_believed_within_reason(told: str, seconds: float | None) -> None:
    wait = Patience().wait(1, retry_after(httpx.Response(429, headers={"retry-after": told})))
    assert wait == seconds if seconds else 0.25 <= wait <= 0.5


GOOD: dict[str, Any] = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": None}]},
        {"choices": [{"message": {"content": "half \ud83d"}, "finish_reason": "stop"}]},
        {"choices": [{**GOOD["choices"][0], "token_ids": ["1"]}]},
        {"choices": [{**GOOD["choices"][0], "token_ids": [True]}]},
        {**GOOD, "usage": 5},
        {**GOOD, "usage": {"completion_tokens": "5"}},
        {**GOOD, "prompt_token_ids": {"0": 1}},
    ],
)
def test_what_is_no_completion_is_a_bad_answer(content: Any) -> None:
    assert parse_answer(GOOD).text == "a"
    with pytest.raises(BadAnswer):
        parse_answer(content)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000, json.dumps(GOOD)[:-1]])
def test_what_is_no_json_is_a_bad_answer(text: str) -> None:
    with pytest.raises(BadAnswer):
        read_json(httpx.Response(200, text=text))
