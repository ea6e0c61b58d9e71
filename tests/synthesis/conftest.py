"""Scripted servers, and runs against them."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from specdec.io import read_jsonl
from specdec.synthesis import Capabilities, Endpoint, Journal, Patience, Recipe, Server, assemble, probe, synthesize
from specdec.synthesis.request import row_seed
from specdec.synthesis.statistics import RunStatistics
from tests.settings import sampling
from tests.synthesis.scripted import KEY, TOKENS, Plan, Scripted, reply

BASE = {"weights": "w" * 64, "tokenizer": "t" * 64, "chat_template": "c" * 64}
GREEDY = sampling()

Rows = list[dict[str, Any]]
Start = Callable[..., Scripted]


@pytest.fixture
def scripted() -> Iterator[Start]:
    """Starts scripted servers, and stops them at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(plan: Plan = lambda _last, _n: "ok", **options: Any) -> Scripted:
            server = Scripted(plan, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def endpoint() -> Callable[..., Endpoint]:
    """An endpoint of a scripted server, with the right key unless another is given."""

    def make(server: Scripted, key: str | None = KEY, **able: Any) -> Endpoint:
        secret = SecretStr(key) if key else None
        return Endpoint(server.url, "base", "vllm", secret, Capabilities(**able))

    return make


def known(endpoint: Endpoint) -> Server:
    """A server that is connected at the start without asking it anything, and later with a real request."""
    fields = dict(endpoint.capabilities.fields)
    return Server(endpoint.url, lambda: probe(endpoint, fields, GREEDY), endpoint)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(GREEDY, 100_000, BASE, TOKENS)


@pytest.fixture
def quick() -> Patience:
    """Tries again at once, and bears a machine that stands still for seconds."""
    return Patience(first_wait=0.002, longest_wait=0.01, read=30.0, total=60.0, watch=0.1, outage=30.0)


@pytest.fixture
def hasty(quick: Patience) -> Patience:
    """Gives up in about a second: where giving up is what is waited for."""
    return dataclasses.replace(quick, connect=1.0, read=0.25, total=0.5, outage=0.5)


@pytest.fixture
def prompts() -> Callable[[int], list[dict[str, Any]]]:
    """Prompts of one to three user turns, some with a system turn; every message is unlike all others."""

    def make(count: int) -> list[dict[str, Any]]:
        return [_prompt(i) for i in range(count)]

    return make


def _prompt(number: int) -> dict[str, Any]:
    system = [{"role": "system", "content": f"system {number}"}] if number % 3 == 0 else []
    turns = [
        {"role": role, "content": f"{role} {number}.{turn}"}
        for turn in range(1 + number % 3)
        for role in ("user", "assistant")
    ]
    row_id = hashlib.sha256(str(number).encode()).hexdigest()
    return {"id": row_id, "category": f"c{number % 2}", "messages": [*system, *turns]}


@pytest.fixture
def journal_folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def go(
    journal_folder: Path, recipe: Recipe, quick: Patience, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> Callable[..., tuple[RunStatistics, Rows]]:
    """One run over `rows` with one server or several; returns its statistics and the assembled rows."""

    def run(
        servers: Scripted | Server | Sequence[Scripted | Server],
        rows: Rows,
        share: float = 1.0,
        key: str = KEY,
        concurrency: int | None = 8,
        recipe: Recipe = recipe,
        patience: Patience = quick,
        say: Callable[[str], None] = lambda _line: None,
        **able: Any,
    ) -> tuple[RunStatistics, Rows]:
        several = servers if isinstance(servers, Sequence) else [servers]
        with Journal.open(journal_folder / "j.jsonl", {"settings": "same"}) as journal:
            statistics = synthesize(
                lambda: rows,
                journal,
                [s if isinstance(s, Server) else known(endpoint(s, key, **able)) for s in several],
                recipe,
                max_failed_share=share,
                concurrency=concurrency,
                say=say,
                patience=patience,
            )
            assemble(journal, rows, recipe.sampling.samples, tmp_path / "out.jsonl")
        return statistics, list(read_jsonl(tmp_path / "out.jsonl"))

    return run


@pytest.fixture
def recorded(journal_folder: Path) -> Callable[[], Rows]:
    """The journal's lines behind its header."""
    return lambda: [entry for entry in read_jsonl(journal_folder / "j.jsonl") if "key" in entry]


def regenerated(prompt: dict[str, Any], says: Callable[..., str] = reply, sample: int | None = None) -> Rows:
    """The conversation that a run must come to. sample: where seeds are sent, that of the row."""
    history: Rows = []
    for message in prompt["messages"]:
        if message["role"] == "assistant":
            continue
        history.append(message)
        if message["role"] == "user":
            turn = sum(m["role"] == "assistant" for m in history)
            seed = [] if sample is None else [row_seed(prompt["id"], sample, turn)]
            history.append({"role": "assistant", "content": says(history, *seed)})
    return history
