"""The drafters of a run side by side: ranked by speed, compared prompt by prompt."""

from dataclasses import asdict
from typing import Any

import pytest

from specdec.errors import DataError
from specdec.evaluation import Bootstrap
from specdec.evaluation.bake_off import Entrant, bake_off
from specdec.evaluation.measure import PromptMeasurement, Way
from specdec.evaluation.summary import summarize

BOOTSTRAP = Bootstrap(400, 0.95, 0)
PROMPTS = 20


def prompts(accepted: int, seconds: float, ids: int = 0) -> list[PromptMeasurement]:
    """Of ten steps each, with a few tokens more or less from prompt to prompt."""
    return [
        PromptMeasurement(
            f"p{ids + i}",
            "c",
            3,
            [1] * 20,
            [False] * 20,
            10,
            30,
            [accepted + i % 3],
            [20],
            None,
            [seconds],
            [0.0],
            [0.0],
            [0.0],
        )
        for i in range(PROMPTS)
    ]


def entrant(name: str, accepted: int, seconds: float, plain: float = 2.0, ids: int = 0) -> Entrant:
    measured = {
        "no drafter": prompts(0, plain, ids),
        "chain of 3": prompts(accepted, seconds, ids),
        "prompt lookup": prompts(1, 1.8, ids),
    }
    found = {
        name: summarize(Way(name), measured[name], measured["no drafter"], BOOTSTRAP)
        for name in ("chain of 3", "prompt lookup")
    }
    rows = [{"way": way} | asdict(p) for way, entries in measured.items() for p in entries]
    return Entrant.parse(name, {"main": "chain of 3", "ways": found}, rows)


def test_the_fastest_first_and_lookup_in_its_place() -> None:
    rows = bake_off([entrant("slow", 9, 2.5), entrant("fast", 6, 1.0), entrant("also", 6, 1.0, plain=1.9)], BOOTSTRAP)
    assert [row["name"] for row in rows] == ["fast", "also", "prompt lookup", "slow"]
    by: dict[str, Any] = {row["name"]: row for row in rows}
    assert "to_best" not in by["fast"]
    assert "to_lookup" not in by["prompt lookup"]
    assert by["slow"]["to_best"]["verdict"] == "better", "it accepts more, and is slower"
    assert by["slow"]["speed_to_best"]["verdict"] == "worse"
    assert by["also"]["to_best"] == {
        "difference": {"value": 0, "low": 0, "high": 0},
        "p_value": 1,
        "verdict": "no difference",
    }
    assert by["also"]["speed_to_best"]["difference"]["value"] == pytest.approx(-0.1)
    assert by["prompt lookup"]["to_best"]["verdict"] == "worse"
    assert by["fast"]["to_lookup"]["difference"]["value"] == pytest.approx(0.5)


def test_one_drafter_alone() -> None:
    rows = bake_off([entrant("only", 6, 1.0)], BOOTSTRAP)
    assert [row["name"] for row in rows] == ["only", "prompt lookup"]


def test_each_against_the_champion_by_its_own_plain_passes() -> None:
    """`same` gains what the champion does, on a machine that was twice as slow then."""
    reigning = entrant("champion (version 3)", 6, 1.0)
    entrants = [entrant("more", 9, 0.5), entrant("same", 6, 2.0, plain=4.0), entrant("less", 3, 1.5), reigning]
    by = {row["name"]: row for row in bake_off(entrants, BOOTSTRAP, reigning.name)}
    assert by["more"]["to_champion"]["verdict"] == by["more"]["speed_to_champion"]["verdict"] == "better"
    assert by["more"]["to_champion"]["difference"]["value"] == pytest.approx(0.3)
    assert by["more"]["speed_to_champion"]["difference"]["value"] == pytest.approx(2.0)
    for key in ("to_champion", "speed_to_champion"):
        assert by["same"][key]["difference"]["value"] == pytest.approx(0)
        assert by["same"][key]["verdict"] == "no difference"
        assert by["less"][key]["verdict"] == "worse"
        assert key not in by[reigning.name]
    assert by["prompt lookup"]["to_champion"]["verdict"] == "worse"
    assert by[reigning.name]["to_best"]["verdict"] == "worse", "it is an entrant as the others are"


def test_a_champion_of_the_run_and_none() -> None:
    entrants = [entrant("a", 6, 1.0), entrant("b", 3, 1.5)]
    by = {row["name"]: row for row in bake_off(entrants, BOOTSTRAP, "b")}
    assert by["a"]["to_champion"]["verdict"] == "better"
    assert "to_champion" not in by["b"]
    assert not any("to_champion" in row or "speed_to_champion" in row for row in bake_off(entrants, BOOTSTRAP))


def test_other_prompts_are_not_compared() -> None:
    with pytest.raises(DataError, match="a and b were measured on different prompts: evaluate both again"):
        bake_off([entrant("a", 6, 1.0), entrant("b", 6, 1.0, ids=5)], BOOTSTRAP)


def test_a_report_of_another_version() -> None:
    with pytest.raises(DataError, match=r"reports/x lacks something \('way'\): evaluate the drafter again"):
        Entrant.parse("x", {"main": "m", "ways": {}}, [asdict(prompts(1, 1.0)[0])])
