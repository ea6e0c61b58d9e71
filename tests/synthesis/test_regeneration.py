"""Regeneration against a scripted server: nothing lost, nothing twice."""

import random
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import DataError, RequestRefused, ServerError
from specdec.synthesis import Journal, Patience, Recipe, synthesize
from specdec.synthesis.answer import Answer
from specdec.synthesis.conversation import Regenerated, _segment
from specdec.synthesis.request import Draw
from tests.settings import sampling
from tests.synthesis.conftest import known, regenerated
from tests.synthesis.scripted import END, TOKENS


def test_each_turn_is_regenerated_on_its_own_history(scripted: Any, go: Any, prompts: Any) -> None:
    rows = prompts(6)
    _, out = go(scripted(), rows)
    assert [r["id"] for r in out] == [r["id"] for r in rows]
    for row, made in zip(rows, out, strict=True):
        assert made["messages"] == regenerated(row)
        users = [m for m in row["messages"] if m["role"] == "user"]
        assert len(made["segments"]) == len(users)
        assert set(made) == {"id", "sample", "category", "messages", "segments", "sampling", "base", "token_ids_from"}
        assert made["token_ids_from"] == "server"
        assert made["segments"][0]["token_ids"][-1] == END
        assert made["sampling"] == {
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": 64,
            "seeded": False,
        }


def test_answered_rows_are_not_asked_again_and_failed_ones_are(scripted: Any, go: Any, prompts: Any) -> None:
    rows = prompts(9)
    bad = rows[4]["messages"][0]["content"]
    first = scripted(lambda last, _n: "400" if last == bad else "ok")
    statistics, out = go(first, rows)
    assert (statistics.failures, len(out)) == ({"http_400": 1}, 8)
    second = scripted()
    statistics, out = go(second, rows)
    assert (statistics.answered, statistics.before, len(out)) == (1, 8, 9)
    assert all(last in {m["content"] for m in rows[4]["messages"]} for last in second.asked)


def test_a_cut_off_answer_ends_the_conversation(scripted: Any, go: Any, prompts: Any) -> None:
    rows = [prompts(3)[2]]  # three user turns
    cut = "user 2.1"
    _, [out] = go(scripted(lambda last, _n: "length" if last == cut else "ok"), rows)
    assert [s["finish_reason"] for s in out["segments"]] == ["stop", "length"]
    assert [m["content"] for m in out["messages"] if m["role"] == "user"] == ["user 2.0", "user 2.1"]


def test_a_turn_that_does_not_fit_the_context_ends_the_conversation(
    scripted: Any, go: Any, prompts: Any, recipe: Recipe
) -> None:
    first = len(TOKENS.prompt_ids([{"role": "user", "content": "user 2.0"}]))
    object.__setattr__(recipe, "max_model_len", 64 + first + 5)  # room for `user 2.0`, not for what follows
    _, [out] = go(scripted(), [prompts(3)[2]])
    assert [m["role"] for m in out["messages"]] == ["user", "assistant"]
    object.__setattr__(recipe, "max_model_len", 64 + 5)
    statistics, _ = go(scripted(), [prompts(2)[1]])
    assert statistics.failures == {"too_long": 1}


def test_without_the_servers_token_ids_they_are_remade(scripted: Any, go: Any, prompts: Any) -> None:
    _, out = go(scripted(gives_ids=False), prompts(2))
    assert {r["token_ids_from"] for r in out} == {"tokenizer"}
    assert out[0]["segments"][0]["prompt_token_ids"] == TOKENS.prompt_ids(out[0]["messages"][:-1])
    assert TOKENS.text(out[0]["segments"][0]["token_ids"]) == out[0]["messages"][-1]["content"]


def test_all_sampling_settings_are_sent(scripted: Any, go: Any, prompts: Any, recipe: Recipe) -> None:
    hot = sampling(0.7, top_p=0.9)
    object.__setattr__(recipe, "sampling", hot)
    server = scripted()
    go(server, prompts(4), fields={"return_token_ids": True, "top_k": -1}, seeds=True)
    sent = server.bodies
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "return_token_ids": True, "top_k": -1}
    assert all({**body, **wanted} == body for body in sent)
    assert len({body["seed"] for body in sent}) == len(sent)


def test_no_seed_without_the_capability(scripted: Any, go: Any, prompts: Any) -> None:
    server = scripted()
    go(server, prompts(2))
    assert all("seed" not in body for body in server.bodies)


def test_the_failure_budget_stops_the_run_with_a_summary(scripted: Any, go: Any, prompts: Any) -> None:
    rows = prompts(60)
    server = scripted(lambda last, _n: "400" if last.startswith("user 1") else "ok", delay=0.005)
    with pytest.raises(DataError, match=r"^4 of 60 rows failed, more than .*http_400 x 4 \(HTTP 400: .*scripted"):
        go(server, rows, share=0.05)
    assert sum(server.asked.values()) < 60, "it stops early"


def test_a_wrong_key_is_refused_at_once_and_never_shown(scripted: Any, go: Any, prompts: Any) -> None:
    server = scripted()
    with pytest.raises(RequestRefused, match="401") as caught:
        go(server, prompts(20), key="sk-wrong-7788")
    assert "7788" not in str(caught.value) + repr(caught.value)
    assert not server.asked


def test_a_server_that_dies_keeps_the_journal(scripted: Any, go: Any, prompts: Any, hasty: Patience) -> None:
    rows = prompts(30)
    holder: list[Any] = []

    def plan(_last: str, _n: int) -> str:
        if holder[0].answered >= 40:  # of 60; the eight rows in flight hold 24 of them at most
            holder[0]._stopped.set()
        return "ok"

    holder.append(scripted(plan))
    with pytest.raises(ServerError, match=r"no server has answered for .* run the same command again"):
        go(holder[0], rows, patience=hasty)
    statistics, out = go(scripted(), rows)
    assert statistics.before >= 6
    assert len(out) == 30


def test_a_dead_engine_behind_a_living_door_is_a_server_error(
    scripted: Any, go: Any, prompts: Any, hasty: Patience
) -> None:
    server = scripted(lambda _last, _n: "500")
    server.health = 503
    with pytest.raises(ServerError, match="no server has answered"):
        go(server, prompts(4), patience=hasty)


def test_a_surrogate_fails_its_row_only(scripted: Any, go: Any, prompts: Any) -> None:
    rows = prompts(3)
    rows[1]["messages"] = [{"role": "user", "content": "half a pair: \ud83d"}]
    statistics, out = go(scripted(), rows)
    assert (statistics.failures, len(out)) == ({"bad_prompt": 1}, 2)


def test_memory_holds_no_task_per_row(
    scripted: Any, prompts: Any, recipe: Recipe, endpoint: Any, journal_folder: Path
) -> None:
    """With 4 workers no more than 4 prompts beyond the finished ones are ever drawn."""
    rows, drawn, server = prompts(40), [0], scripted(delay=0.002)

    def source() -> Any:
        for row in rows:
            drawn[0] += 1
            yield row

    most = 0

    def watch(last: str, n: int) -> str:
        nonlocal most
        most = max(most, drawn[0] - 40 - len(journal))  # the first 40 are the count
        return "ok"

    server.plan = watch
    with Journal.open(journal_folder / "j.jsonl", {}) as journal:
        synthesize(
            source,
            journal,
            [known(endpoint(server))],
            recipe,
            max_failed_share=0.0,
            concurrency=4,
            say=lambda _line: None,
        )
    assert most <= 4


def test_the_same_answers_give_the_same_bytes_whatever_their_order(
    scripted: Any, go: Any, prompts: Any, tmp_path: Path, journal_folder: Path
) -> None:
    rows = prompts(20)
    go(scripted(), rows)
    first = (tmp_path / "out.jsonl").read_bytes()
    next(journal_folder.iterdir()).unlink()
    jitter = random.Random(1)
    go(scripted(lambda _last, _n: jitter.choice(["ok", "slow"])), rows)
    assert (tmp_path / "out.jsonl").read_bytes() == first


def test_a_broken_off_answer_is_asked_again(scripted: Any, go: Any, prompts: Any) -> None:
    server = scripted(lambda _last, n: "abort" if n == 0 else "ok")
    statistics, out = go(server, prompts(4))
    assert len(out) == 4
    assert {s["finish_reason"] for row in out for s in row["segments"]} == {"stop"}
    assert statistics.figures()["retries"] == len(server.asked)


def test_an_answer_that_ended_otherwise_fails_its_row(scripted: Any, go: Any, prompts: Any) -> None:
    statistics, out = go(scripted(lambda last, _n: "repetition" if last == "user 1.0" else "ok"), prompts(3))
    assert (statistics.failures, len(out)) == ({"finish_reason": 1}, 2)
    assert "'repetition': only stop and length are whole answers" in statistics.failure_summary()


def test_a_text_without_token_ids_is_no_answer(scripted: Any, go: Any, prompts: Any) -> None:
    statistics, out = go(scripted(lambda last, n: "no ids" if last == "user 1.0" and n < 2 else "ok"), prompts(3))
    assert len(out) == 3
    assert statistics.figures()["retries"] == 2
    assert all(segment["token_ids"] for row in out for segment in row["segments"])


@pytest.mark.parametrize(("spare", "failures"), [(0, {}), (-1, {"too_long": 1})])
def test_the_context_may_be_full_to_the_last_token(
    spare: int, failures: dict[str, int], scripted: Any, go: Any, prompts: Any, recipe: Recipe
) -> None:
    row = {**prompts(2)[1], "messages": [{"role": "user", "content": "to the brim"}]}
    object.__setattr__(recipe, "max_model_len", len(TOKENS.prompt_ids(row["messages"])) + 64 + spare)
    statistics, _ = go(scripted(), [row])
    assert statistics.failures == failures


def test_answers_that_the_server_counts_otherwise_are_counted(scripted: Any, go: Any, prompts: Any) -> None:
    """The scripted server counts the token that ends an answer, and this tokenizer gives none for it."""
    said: list[str] = []
    statistics, _ = go(scripted(gives_ids=False), prompts(2), say=said.append)
    assert statistics.figures()["token_counts_differ"] == 3
    assert "warning: of 3 answers the server counted other tokens than their text gives" in said
    statistics, _ = go(scripted(), prompts(3), say=said.append)
    assert statistics.figures()["token_counts_differ"] == 0


def test_prompts_that_the_server_counts_otherwise_are_counted(recipe: Recipe) -> None:
    for counted, differ in ((None, 0), (3, 0), (4, 1)):
        made = Regenerated(Draw.of(recipe.sampling, "r", 0))
        _segment(Answer("said", "stop", prompt_tokens=counted), [1, 2, 3], made, TOKENS)
        assert (made.prompts_differ, made.token_ids_from) == (differ, "tokenizer")
