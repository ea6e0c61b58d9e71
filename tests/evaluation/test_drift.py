"""The test for a drop: how often it cries wolf, how soon it sees one, and that it can be stopped and gone on with."""

import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.evaluation.drift import Drift

FLOOR = 0.45


def readings(seed: int, mean: float, spread: float, count: int) -> list[float]:
    """Of traffic whose mean wanders: each reading is drawn around a mean of its own."""
    random = np.random.default_rng(seed)
    centre = np.clip(mean + spread * random.standard_normal(count), 0.01, 0.99)
    return random.beta(20 * centre, 20 * (1 - centre)).tolist()


def alarms(mean: float, spread: float, runs: int, count: int = 400, **settings: float) -> list[int | None]:
    """After how many readings each run gave the alarm."""
    found: list[int | None] = []
    for seed in range(runs):
        state, at = Drift(FLOOR, **settings), None
        for number, reading in enumerate(readings(seed, mean, spread, count), 1):
            state = state.read(reading)
            if state.alarm:
                at = number
                break
        found.append(at)
    return found


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.15])
def test_it_seldom_cries_wolf_however_often_one_looks(spread: float) -> None:
    """At the floor itself, the hardest case, over 400 looks each."""
    found = alarms(FLOOR + 0.002, spread, 400, false_alarms=0.05)
    assert sum(at is not None for at in found) / len(found) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_better_than_promised_is_no_alarm() -> None:
    assert alarms(0.6, 0.1, 50) == [None] * 50


@pytest.mark.parametrize(("mean", "within"), [(0.30, 40), (0.38, 150)])
def test_a_drop_is_seen_the_sooner_the_larger_it_is(mean: float, within: int) -> None:
    found = alarms(mean, 0.05, 60)
    assert all(at is not None and at <= within for at in found)
    assert min(at for at in found if at is not None) > 2, "one noisy reading is none"


def test_one_reading_of_nothing_is_no_alarm() -> None:
    state = Drift(FLOOR)
    for _ in range(50):
        state = state.read(0.5)
    assert not state.read(0.0).alarm


def test_a_drop_after_a_long_good_time_is_still_seen() -> None:
    state = Drift(FLOOR)
    for reading in readings(0, 0.5, 0.05, 300):
        state = state.read(reading)
    assert not state.alarm
    for reading in readings(1, 0.2, 0.05, 300):
        state = state.read(reading)
    assert state.alarm


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.99))
def test_wealth_is_never_lost_whole_and_an_alarm_stays(values: list[float], floor: float) -> None:
    state, seen = Drift(floor), False
    for value in values:
        state = state.read(value)
        seen = seen or state.alarm
        assert math.isfinite(state.log_wealth)
        assert state.alarm == seen
    assert state.readings == len(values)


def test_it_goes_on_from_what_was_written_down() -> None:
    whole, half = Drift(FLOOR), Drift(FLOOR)
    values = readings(3, 0.4, 0.05, 20)
    for value in values:
        whole = whole.read(value)
    for value in values[:10]:
        half = half.read(value)
    half = Drift(**asdict(half))
    for value in values[10:]:
        half = half.read(value)
    assert half == whole


@pytest.mark.parametrize("settings", [{"floor": 0.0}, {"floor": 1.0}, {"floor": 0.5, "false_alarms": 0.0}])
def test_impossible_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        Drift(**settings)


@pytest.mark.parametrize("reading", [-0.1, 1.1, math.nan])
def test_no_share(reading: float) -> None:
    with pytest.raises(ValueError, match="no share"):
        Drift(FLOOR).read(reading)


def until_alarm(promised: float, served: float) -> int:
    state = Drift(0.9 * promised)
    for _ in range(5):
        state = state.read(promised)
    while not state.alarm:
        state = state.read(served)
    return state.readings - 5


def test_the_page_says_how_soon_it_sees_a_drop() -> None:
    page = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    rows = re.findall(r"^\| (0\.\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    for promised, *told in rows:
        found = [until_alarm(float(promised), float(promised) * share) for share in (0.8, 0.7, 0.5, 0.25)]
        assert found == list(map(int, told))


def test_evidence_comes_and_goes() -> None:
    state = Drift(FLOOR)
    assert state.evidence == 0
    for _ in range(8):
        state = state.read(0.25)
    before = state.evidence
    assert 0 < before < 1
    state = state.read(0.9)
    assert state.evidence < before
    assert state.highest == pytest.approx(-before * math.log(state.false_alarms))
