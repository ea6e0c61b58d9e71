"""Two hundred plans of misfortune: every row ends answered or recorded, none twice, none missing."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest

from specdec.synthesis import Patience, Recipe, Server
from tests.settings import sampling
from tests.synthesis.conftest import known, regenerated
from tests.synthesis.scripted import reply

PASSING = ("429", "500", "503", "502", "reset", "garbage", "truncated", "html", "surrogate")
FINAL = {"400": "http_400", "422": "http_422", "empty": "empty", "500": "http_500", "garbage": "bad_answer"}
# What a row may be recorded with where its server was to blame.
LOST = {f"http_{x}" for x in PASSING if x.isdigit()} | {"network", "bad_answer", "timeout", "server_lost"}
MISFORTUNES = ("none", "dies", "black hole", "silent", "locked", "late")
QUESTION = "Hello"  # of the probe, which waits longer for its answer than a test may take
PLANS, BY_DEFAULT = 200, 20

every_plan = [pytest.param(n, marks=() if n < BY_DEFAULT else pytest.mark.soak) for n in range(PLANS)]


def fates(draw: random.Random, rows: list[dict[str, Any]]) -> dict[str, tuple[list[str], str]]:
    """For each message the troubles on its way, and its end."""
    made = {}
    for message in (message for row in rows for message in row["messages"]):
        trouble = draw.choices([*PASSING, "hang"], weights=[10] * len(PASSING) + [1], k=draw.randrange(4))
        end = draw.choice(list(FINAL)) if draw.random() < 0.05 else draw.choice(["ok", "slow"])
        made[message["content"]] = (trouble, end)
    return made


class Fated:
    """The plan of one server: its own misfortune first, then that of the message."""

    def __init__(self, draw: random.Random, misfortune: str, fate: dict[str, tuple[list[str], str]]) -> None:
        self.misfortune, self.fate, self.requests = misfortune, fate, 0
        self.first, self.last = (first := draw.randrange(12)), first + draw.randrange(4, 20)
        self.away, self.server = draw.uniform(0.02, 0.3), None

    def __call__(self, last: str, n: int) -> str:
        self.requests += 1
        ill = self.first <= self.requests < self.last
        if self.misfortune == "dies" and self.requests in (self.first, self.last):
            self.server.die(self.away)
        if self.misfortune == "black hole" and ill:
            return "500"
        if self.misfortune == "silent" and ill:
            return "reset" if last == QUESTION else "hang"
        if self.misfortune == "locked" and self.requests >= self.first:
            return "401"
        trouble, end = self.fate.get(last, ([], "ok"))
        return trouble[n] if n < len(trouble) else end


def start(scripted: Any, endpoint: Any, draw: random.Random, fate: Any, count: int) -> list[Server]:
    """Servers, of which the first one never locks us out."""
    servers = []
    for number in range(count):
        choice = [m for m in MISFORTUNES if number or m not in ("locked", "late")]
        plan = Fated(draw, draw.choice(choice), fate)
        plan.server = scripted(plan)
        server = known(endpoint(plan.server, seeds=True))
        late = plan.misfortune == "late"
        servers.append(dataclasses.replace(server, endpoint=None if late else server.endpoint))
    return servers


@pytest.mark.parametrize("seed", every_plan)
def test_every_row_ends_answered_or_recorded(
    seed: int, scripted: Any, endpoint: Any, go: Any, recorded: Any, prompts: Any, recipe: Recipe, hasty: Patience
) -> None:
    draw = random.Random(seed)
    rows, samples = prompts(draw.randrange(6, 12)), draw.choice([1, 1, 2, 3])
    fate = fates(draw, rows)
    servers = start(scripted, endpoint, draw, fate, count=1 + seed % 3)
    concurrency = draw.choice([None, 1, 3, 8])
    recipe = dataclasses.replace(recipe, sampling=sampling(0.8, samples=samples))
    patient = dataclasses.replace(hasty, outage=5.0, watch=0.05, read=0.15)

    statistics, out = go(servers, rows, concurrency=concurrency, recipe=recipe, patience=patient)

    keys = [f"{row['id']}/{sample}" for row in rows for sample in range(samples)]
    entries = recorded()
    assert sorted(entry["key"] for entry in entries) == sorted(keys), "each row once"
    failed = {entry["key"]: entry["failed"]["kind"] for entry in entries if "failed" in entry}
    assert statistics.failures.total() == len(failed)
    assert statistics.answered == len(keys) - len(failed)
    assert set(failed.values()) <= LOST | set(FINAL.values())
    users = {row["id"]: [m["content"] for m in row["messages"] if m["role"] == "user"] for row in rows}
    doomed = {key for key in keys if any(fate[turn][1] in FINAL for turn in users[key.split("/")[0]])}
    assert doomed <= set(failed)
    check(rows, samples, out, failed)

    _, out = go(scripted(), rows, recipe=recipe, seeds=True)  # the next run
    assert sorted(e["key"] for e in recorded()) == sorted([*keys, *failed]), "only what failed is asked again"
    check(rows, samples, out, {})


def check(rows: list[dict[str, Any]], samples: int, out: list[dict[str, Any]], failed: Any) -> None:
    says: Callable[..., str] = reply
    wanted = [(row, sample) for row in rows for sample in range(samples) if f"{row['id']}/{sample}" not in failed]
    for (row, sample), made in zip(wanted, out, strict=True):
        assert (made["id"], made["sample"]) == (row["id"], sample)
        assert made["messages"] == regenerated(row, says, sample)


def test_the_plans_hold_what_they_promise() -> None:
    drawn = [Fated(random.Random(n), random.Random(n).choice(MISFORTUNES), {}).misfortune for n in range(PLANS)]
    assert all(drawn.count(misfortune) > PLANS / 20 for misfortune in MISFORTUNES)
