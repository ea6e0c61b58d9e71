"""The figures of a synthesis: those of the data count every answer, those of a run only what it did itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from specdec.synthesis import Journal, Recipe, assemble
from specdec.synthesis.statistics import DataStatistics, RunStatistics
from tests.settings import sampling
from tests.synthesis.scripted import reply

DELAY = 0.03


def figures_of_the_data(folder: Path, rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    with Journal.open(folder / "j.jsonl", {"settings": "same"}) as journal:
        return assemble(journal, rows, 1, out).figures()


def test_a_resumed_run_measures_itself_and_the_data_count_all(
    scripted: Any, go: Any, prompts: Any, journal_folder: Path, tmp_path: Path
) -> None:
    rows = prompts(12)  # four each of one, two and three turns
    lost = [row["messages"][-2]["content"] for row in rows[:3]]
    kinds = dict(zip(lost, ("400", "422", "400"), strict=True))

    first, _ = go(scripted(lambda last, _n: kinds.get(last, "ok"), delay=DELAY), rows)
    data = figures_of_the_data(journal_folder, rows, tmp_path / "first.jsonl")
    assert (data["rows"], data["rows_missing"], data["rows_dropped"]) == (9, 3, {})
    assert data["failures"] == first.figures()["failures"] == {"http_400": 2, "http_422": 1}

    second, _ = go(scripted(delay=DELAY), rows)
    whole = figures_of_the_data(journal_folder, rows, tmp_path / "second.jsonl")
    assert (whole["rows"], whole["rows_missing"], whole["failures"]) == (12, 0, {})
    assert (whole["turns"], whole["finish_reasons"]) == (24, {"stop": 24})
    assert whole["temperatures"] == {"0": 12}
    assert whole["token_ids_from"] == {"server": 12}
    ran = [run.figures() for run in (first, second)]
    assert [(run["rows_before"], run["rows_answered"]) for run in ran] == [(0, 9), (9, 3)]
    assert sum(run["answer_tokens"] for run in ran) == whole["answer_tokens"] == 24 * (len(reply([])) + 1)
    assert ran[1]["failures"] == {}
    with Journal.open(journal_folder / "j.jsonl", {"settings": "same"}) as journal:
        assert [run["rows_answered"] for run in journal.runs] == [9, 3]


def test_throughput_latency_and_shares(scripted: Any, go: Any, prompts: Any) -> None:
    servers = [scripted(delay=DELAY), scripted(delay=DELAY)]
    statistics, out = go(servers, prompts(30), concurrency=2)
    figures = statistics.figures()
    tokens = sum(len(segment["token_ids"]) for row in out for segment in row["segments"])
    assert figures["answer_tokens"] == tokens
    assert figures["tokens_per_second"] == pytest.approx(tokens / figures["seconds"], rel=0.01)
    assert figures["requests"] == 60
    assert DELAY * 0.98 < figures["latency_seconds"]["p50"] <= figures["latency_seconds"]["p99"] < figures["seconds"]
    assert set(figures["servers"]) == {server.url for server in servers}
    for server in servers:
        own = figures["servers"][server.url]
        assert (own["requests"], own["in_flight"], own["set_aside"]) == (server.answered, 2, 0)
        assert own["share"] == pytest.approx(own["answer_tokens"] / tokens, abs=1e-4)
        assert own["latency_seconds"]["p50"] > DELAY * 0.98
    assert sum(server.answered for server in servers) == 60


def test_rows_that_cut_off_leaves_out_are_counted_by_why(
    scripted: Any, go: Any, prompts: Any, recipe: Recipe, journal_folder: Path, tmp_path: Path
) -> None:
    rows = [{**row, "messages": row["messages"][-2:]} for row in prompts(5)]
    cut = {rows[n]["messages"][0]["content"] for n in (1, 3)}
    dropping = dataclasses.replace(recipe, sampling=sampling(cut_off="drop"))
    go(scripted(lambda last, _n: "length" if last in cut else "ok"), rows, recipe=dropping)
    data = figures_of_the_data(journal_folder, rows, tmp_path / "data.jsonl")
    assert (data["rows"], data["rows_missing"], data["rows_dropped"]) == (3, 0, {"cut_off": 2})


def test_a_row_that_nobody_asked_is_missing_without_a_failure() -> None:
    data = DataStatistics()
    for why in ("timeout", None, "timeout"):
        data.add_missing(why)
    assert (data.figures()["rows_missing"], data.figures()["failures"]) == (3, {"timeout": 2})


def test_progress_says_rows_speed_failures_and_time_left() -> None:
    run = RunStatistics(total=100, before=40, answered=18, tokens=3000, began=1000.0, ended=1060.0)
    assert run.line() == "58/100 rows, 50 tokens/s, 0 failed, 2 min left"
    run.add_failure("timeout", "no answer")
    run.dropped["cut_off"] += 1
    assert run.line() == "60/100 rows, 50 tokens/s, 1 failed, 2 min left"
    run.answered = 48
    assert run.line() == "90/100 rows, 50 tokens/s, 1 failed, 12 s left"
    fresh = RunStatistics(total=100, before=40, began=1000.0, ended=1060.0)
    assert fresh.line() == "40/100 rows, 0 tokens/s, 0 failed, time left not known yet"
    assert fresh.figures()["tokens_per_second"] is None
