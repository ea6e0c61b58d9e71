"""Readings of a server's counters: what is promised, what is a reading, restarts, alarms, going on after a stop."""

import json
from pathlib import Path

import pytest

from specdec.errors import TrackingError, TransientError
from specdec.serving.counters import Counters
from specdec.tracking.register import register
from specdec.tracking.store import Store
from specdec.tracking.watch import Look, Promise, Watch, WatchSettings, promise_of
from specdec.tracking.watch_run import watch_run
from tests.tracking.example import params, write_figures

PROMISE = Promise("specdec-base", "3", (0.6, 0.4, 0.2))  # 0.4 of what is drafted
SETTINGS = WatchSettings(least_drafts=100)
URL = "http://127.0.0.1:8000"


def counters(steps: int, rates: tuple[float, ...] = PROMISE.rates) -> Counters:
    at = tuple(round(steps * rate) for rate in rates)
    return Counters(steps, steps * len(rates), sum(at), at, steps + sum(at))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watched(tmp_path: Path, said: list[str]) -> Watch:
    return Watch(PROMISE, URL, SETTINGS, tmp_path, said.append)


def again(watched: Watch, said: list[str]) -> Watch:
    return Watch(PROMISE, URL, SETTINGS, watched.file.parent, said.append)


def looks(watched: Watch, rates: tuple[float, ...], count: int, start: Counters) -> tuple[list[Look], Counters]:
    found, now = [], start
    for _ in range(count):
        now = now + counters(200, rates)
        look = watched.look(now)
        assert look is not None
        found.append(look)
    return found, now


def test_the_first_look_is_where_it_begins(watched: Watch) -> None:
    assert watched.look(counters(10_000, (0.0, 0.0, 0.0))) is None
    (look,), _ = looks(watched, PROMISE.rates, 1, counters(10_000, (0.0, 0.0, 0.0)))
    assert look.acceptance_length == pytest.approx(2.2)
    assert look.promised == pytest.approx(2.2)
    assert look.position_rates == pytest.approx([0.6, 0.4, 0.2])
    assert (look.tokens, look.drafts, look.readings) == (3, 200, 1)


def test_as_promised_is_no_alarm_and_a_drop_is_one(watched: Watch) -> None:
    watched.look(Counters())
    kept, now = looks(watched, (0.58, 0.4, 0.19), 100, Counters())
    assert not any(look.alarm for look in kept)
    fallen, _ = looks(watched, (0.4, 0.2, 0.1), 100, now)
    first = next(i for i, look in enumerate(fallen) if look.alarm)
    assert 1 < first < 40
    assert "DROP" in str(fallen[first])
    assert str(kept[-1]).endswith("200 steps; evidence for an alarm 0%")
    grown = [look.evidence for look in fallen[: first + 1]]
    assert grown == sorted(grown)
    assert 0 < grown[first - 1] < grown[first] == 1


def test_one_bad_reading_is_none(watched: Watch) -> None:
    watched.look(Counters())
    _, now = looks(watched, PROMISE.rates, 5, Counters())
    bad, _ = looks(watched, (0.0, 0.0, 0.0), 1, now)
    assert not bad[0].alarm


def test_too_little_waits_for_more(watched: Watch) -> None:
    watched.look(Counters())
    assert watched.look(counters(99)) is None
    assert watched.look(counters(99)) is None, "a quiet server"
    look = watched.look(counters(150))
    assert look is not None
    assert look.drafts == 150, "nothing was lost in between"


def test_a_restart_of_the_server_is_understood(watched: Watch, said: list[str]) -> None:
    watched.look(counters(5000))
    assert watched.look(counters(40, (0.0, 0.0, 0.0))) is None
    assert said == ["the server has started anew: its counters begin again"]
    look = watched.look(counters(40, (0.0, 0.0, 0.0)) + counters(200))
    assert look is not None
    assert look.acceptance_length == pytest.approx(2.2), "what came before the second start is in no reading"


def test_it_goes_on_after_a_stop(watched: Watch, said: list[str]) -> None:
    watched.look(Counters())
    _, now = looks(watched, (0.45, 0.25, 0.1), 4, Counters())
    (look,), _ = looks(again(watched, said), (0.45, 0.25, 0.1), 1, now)
    assert look.readings == 5


@pytest.mark.parametrize("content", ["{", "{}", '{"counters": 3, "tokens": 1, "drift": null}', "[]"])
def test_a_state_that_is_none_begins_anew(watched: Watch, said: list[str], content: str) -> None:
    watched.look(Counters())
    watched.file.write_text(content)
    if content in ("{", "[]"):
        with pytest.raises(Exception, match=r"run its stage again|must be|is not"):
            again(watched, said)
        return
    assert again(watched, said).look(counters(500)) is None


def test_another_chain_is_held_against_its_own_promise(watched: Watch) -> None:
    watched.look(Counters())
    _, now = looks(watched, PROMISE.rates, 3, Counters())
    (look,), now = looks(watched, (0.6, 0.4), 1, now)
    assert (look.tokens, look.readings) == (2, 1)
    assert look.promised == pytest.approx(2.0)
    with pytest.raises(TrackingError, match="drafts 5 tokens a step, and version 3 of specdec-base promises 3"):
        watched.look(now + counters(200, (0.6, 0.4, 0.2, 0.1, 0.1)))


def test_after_an_answer_it_begins_again(watched: Watch) -> None:
    watched.look(Counters())
    fallen, now = looks(watched, (0.2, 0.1, 0.0), 60, Counters())
    assert fallen[-1].alarm
    watched.forget()
    (look,), _ = looks(watched, PROMISE.rates, 1, now)
    assert (look.alarm, look.readings) == (False, 1)


def test_the_promise_is_the_versions(project: Path, store: Store) -> None:
    write_figures(project, "two", speedup=1.5)
    register(params(), print)
    found = promise_of("champion", project)
    assert (found.model, found.version, found.rates) == ("specdec-base", "2", (0.5, 0.3))
    store.client.set_model_version_tag("specdec-base", "2", "specdec.position_rates", "[2, 3]")
    with pytest.raises(TrackingError, match="does not say what it promises"):
        promise_of("champion", project)


def test_readings_over_time_are_in_one_run(store: Store, project: Path) -> None:
    for step in (1, 2):
        with watch_run(store, PROMISE, "http://me:hunter2@host:8000", project) as run:
            run.log_metrics({"watch": {"acceptance_length": 2.0 + step}}, step=step)
    (found,) = store.client.search_runs([store.experiment_id], "tags.`specdec.version` = '3'")
    history = store.client.get_metric_history(found.info.run_id, "watch/acceptance_length")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 4.0)]
    assert "hunter2" not in json.dumps(dict(found.data.tags))


def test_a_reading_that_could_not_be_sent_goes_out_with_the_next(
    store: Store, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise TransientError("MLflow is away")

    with watch_run(store, PROMISE, URL, project):
        pass
    with monkeypatch.context() as patch, watch_run(store, PROMISE, URL, project) as run:
        patch.setattr(type(store.client), "log_batch", away)
        run.log_metrics({"watch": {"acceptance_length": 2.0}}, step=1)
    with watch_run(store, PROMISE, URL, project) as run:
        run.log_metrics({"watch": {"acceptance_length": 3.0}}, step=2)
    history = store.client.get_metric_history(run.run_id, "watch/acceptance_length")
    assert sorted((m.step, m.value) for m in history) == [(1, 2.0), (2, 3.0)]
