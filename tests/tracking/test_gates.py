"""Decisions, from figures alone."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.config import Register
from specdec.errors import DataError
from specdec.tracking.card import categories_of, categories_tag
from specdec.tracking.gates import Candidate, Champion, Figures, InEngine, Interval, check, decide

EASY = Register(
    model_name=None,
    bundle_base=False,
    min_acceptance_length=1.2,
    min_speedup=1.0,
    max_engine_difference=0.03,
    require_engine=False,
    served_requests=None,
    min_served_speedup=1.0,
    promote="automatic",
)
STRICT = EASY.model_copy(update={"require_engine": True})
SKIPPED = InEngine(None, "not tried in vLLM: there is none")


def around(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1)


def candidate(
    drafter: str = "one",
    version: str = "5",
    length: float = 1.8,
    speedup: float = 1.3,
    lossless: bool = True,
    certificate: bool = True,
    conditions: str = "same",
    identity: str | None = None,
    engine: InEngine = SKIPPED,
) -> Candidate:
    return Candidate(
        drafter,
        version,
        identity or f"bytes of {version}",
        Figures(around(length), around(speedup), lossless, certificate, conditions, engine),
    )


def champion(speedup: float | None = 1.2, conditions: str = "same", version: str = "4") -> Champion:
    return Champion(version, speedup, conditions, f"bytes of {version}")


# What is measured, who reigns, and the outcome: promoted or not, and what the reason must say.
TABLE: list[tuple[Candidate, Champion | None, bool, str]] = [
    (candidate(), None, True, "the first champion"),
    (candidate(), champion(), True, "its speedup 1.300 beats 1.200 of version 4"),
    (candidate(speedup=1.2), champion(), False, "better_than_champion 1.200 (missed 1.200)"),
    (candidate(speedup=1.15, length=3.0), champion(), False, "better_than_champion 1.150 (missed 1.200)"),
    # One that could have been measured beside it, and was not, may be better.
    (candidate(speedup=9.0), champion(conditions="other"), False, "version 4, was not measured on these prompts"),
    (candidate(speedup=9.0), champion(speedup=None), False, "was not measured on these prompts: `dvc repro -f -s"),
    (
        candidate(speedup=1.15),
        replace(champion(9.0, "other"), other_base=True),
        True,
        "version 4 is for another base",
    ),
    (candidate(speedup=1.15), champion(version="5"), True, "is the champion, and passes"),
    (candidate(speedup=1.15, identity="bytes of 4"), champion(), True, "the drafter of version 4, packed in another"),
    (candidate(lossless=False), None, False, "lossless false (missed true)"),
    (candidate(certificate=False), None, False, "certificate false (missed true)"),
    (candidate(length=1.25), None, False, "acceptance_length 1.150 (missed 1.200)"),
    (candidate(speedup=1.05), None, False, "speedup 0.950 (missed 1.000)"),
    (candidate(speedup=1.1), None, True, "the first champion"),  # the lower end just reaches it
    (candidate(speedup=1.05), champion(version="5"), True, "stays the champion, though it misses now"),
]


@pytest.mark.parametrize(("measured", "reigning", "promoted", "reason"), TABLE)
def test_promotion(measured: Candidate, reigning: Champion | None, promoted: bool, reason: str) -> None:
    (decision,) = decide([measured], EASY, reigning)
    assert decision.promoted is promoted
    assert reason in decision.reason


def test_the_fastest_of_those_that_pass_wins() -> None:
    slow, fast = candidate("slow", "1", length=2.5, speedup=1.2), candidate("fast", "2", speedup=1.5)
    cheat = candidate("cheat", "3", speedup=9.0, lossless=False)
    decisions = decide([slow, fast, cheat], EASY, None)
    assert [d.promoted for d in decisions] == [False, True, False]
    assert "fast (version 2) comes first" in decisions[0].reason


def test_a_champion_that_is_measured_again_defends_itself() -> None:
    old, new = candidate("old", "4", length=1.7, speedup=1.5), candidate("new", "5", length=2.8, speedup=1.2)
    assert [d.promoted for d in decide([old, new], EASY, champion(speedup=1.5))] == [True, False]


@given(st.floats(1, 4), st.floats(1, 4), st.floats(1.2, 4), st.floats(1.2, 4))
def test_who_comes_first_does_not_depend_on_who_came_earlier(a: float, b: float, long: float, short: float) -> None:
    """Measured together or one after the other, the same drafter becomes the champion."""
    one, two = candidate("one", "1", long + 0.2, a + 0.2), candidate("two", "2", short + 0.2, b + 0.2)
    together = [d.promoted for d in decide([one, two], EASY, None)]
    (later,) = decide([two], EASY, Champion("1", one.figures.speedup.value, "same", one.identity))
    assert together == [not later.promoted, later.promoted]


def in_categories(lengths: dict[str, float]) -> dict[str, Interval]:
    return {name: around(length) for name, length in lengths.items()}


@pytest.mark.parametrize(
    ("ours", "promoted"),
    [
        ({"code": 1.8, "chat": 1.8}, True),
        ({"code": 1.71, "chat": 2.5}, True),  # within reach
        ({"code": 1.69, "chat": 2.5}, False),  # better on the whole, and worse at code
        ({"chat": 1.69}, False),
        ({"maths": 1.0}, True),  # which the champion was not measured in
    ],
)
def test_no_category_may_be_worse_than_with_the_champion(ours: dict[str, float], promoted: bool) -> None:
    fast = candidate(speedup=1.5)
    fast = replace(fast, figures=replace(fast.figures, categories=in_categories(ours)))
    reigning = replace(champion(), categories=in_categories({"code": 1.8, "chat": 1.8}))
    (decision,) = decide([fast], EASY, reigning)
    assert decision.promoted is promoted
    assert ("missed 1.800" in decision.reason) is not promoted
    elsewhere = replace(reigning, other_base=True, conditions="other")
    assert decide([fast], EASY, elsewhere)[0].promoted, "figures of another base are no comparison"


def test_one_prompt_in_a_category_shows_nothing() -> None:
    fast = candidate(speedup=1.5)
    fast = replace(fast, figures=replace(fast.figures, categories={"code": Interval(1.0, None, None)}))
    assert decide([fast], EASY, replace(champion(), categories=in_categories({"code": 1.8})))[0].promoted


def test_categories_go_through_a_tag() -> None:
    found = in_categories({"a": 1.5, "b|c": 2.0}) | {"one": Interval(1.1, None, None)}
    assert categories_of(categories_tag(found)) == found
    assert categories_tag({}) == categories_tag({f"category {i}": around(1.5) for i in range(300)}) == ""
    for broken in (None, "", "{", "[]", '{"a": [1]}', '{"a": ["x", 1, 2]}', '{"a": null}'):
        assert categories_of(broken) == {}


def test_a_gate_is_recorded_with_its_figures() -> None:
    gates = {g.gate: g for g in check(candidate(), EASY, champion())}
    assert set(gates) == {"lossless", "certificate", "acceptance_length", "speedup", "better_than_champion"}
    assert gates["speedup"].value == pytest.approx(1.2)
    assert gates["speedup"].needed == 1.0
    assert decide([candidate()], EASY, None)[0].record()["gates"][0] == {
        "gate": "lossless",
        "value": True,
        "needed": True,
        "passed": True,
    }


@given(st.lists(st.tuples(st.floats(1, 4), st.floats(0, 4), st.booleans()), min_size=1, max_size=6))
def test_at_most_one_is_promoted_and_only_if_it_passes(figures: list[tuple[float, float, bool]]) -> None:
    candidates = [candidate(f"d{i}", str(i), *figure) for i, figure in enumerate(figures)]
    decisions = decide(candidates, EASY, champion(version="99"))
    promoted = [d for d in decisions if d.promoted]
    assert len(promoted) <= 1
    assert all(g.passed for d in promoted for g in d.gates)
    assert [d.candidate for d in decisions] == candidates
    passing = [d for d in decisions if all(g.passed for g in d.gates)]
    assert bool(promoted) == bool(passing)


@pytest.mark.parametrize(
    "metrics",
    [{}, {"acceptance_length": 1.8, "speedup": {}, "lossless": True}, {"acceptance_length": {"value": 1}}],
)
def test_figures_that_are_missing_are_named(metrics: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"here\.json lacks a figure"):
        Figures.parse(metrics, SKIPPED, "", "here.json")


@pytest.mark.parametrize(
    ("difference", "promoted"), [(0.0, True), (0.03, True), (-0.03, True), (0.031, False), (-0.031, False)]
)
def test_served_as_predicted_to_either_side(difference: float, promoted: bool) -> None:
    """A drafter that a server accepts less than we do is read in another way there; one more is measured wrong."""
    for settings in (EASY, STRICT):
        (decision,) = decide([candidate(engine=InEngine(difference, "vLLM"))], settings, None)
        assert decision.promoted is promoted
        assert ("engine_difference 0.031 (missed 0.030)" in decision.reason) is not promoted


def test_what_no_engine_has_loaded_is_promoted_only_where_none_is_required() -> None:
    assert decide([candidate()], EASY, None)[0].promoted
    (decision,) = decide([candidate()], STRICT, None)
    assert "tried_in_engine false (missed true)" in decision.reason
    assert decision.record()["engine"] == SKIPPED.told


@pytest.mark.parametrize(
    ("speedup", "promoted", "words"),
    [
        (Interval(1.3, 1.2, 1.4), True, ""),
        (Interval(1.3, 1.1, 1.5), False, "served_speedup 1.100 (missed 1.200)"),
        (Interval(1.3, None, None), False, "served_speedup unknown (one prompt has no interval) (missed 1.200)"),
        (None, False, "served_speedup unknown"),
    ],
)
def test_fast_enough_at_the_load_that_is_served(speedup: Interval | None, promoted: bool, words: str) -> None:
    settings = EASY.model_copy(update={"served_requests": 4, "min_served_speedup": 1.2})
    speedups = {1: around(3.0), 4: speedup} if speedup else {1: around(3.0)}
    (decision,) = decide([candidate(engine=InEngine(0.0, "vLLM", speedups))], settings, None)
    assert decision.promoted is promoted
    assert words in decision.reason


def engine_metrics(**changes: Any) -> dict[str, Any]:
    def length(at_1: float, at_4: float) -> dict[str, Any]:
        loads = {"1": at_1, "4": at_4}
        return {
            "acceptance_length": {"value": 1.9, "low": 1.8, "high": 2.0},
            "difference": -0.012,
            "loads": {n: {"speedup": {"value": v, "low": v - 0.1, "high": v + 0.1}} for n, v in loads.items()},
        }

    more: dict[str, Any] = {"draft_lengths": {"3": length(1.2, 1.1), "5": length(1.4, 0.9)}, "draft_tokens": 3}
    more["best"] = {"1": 5, "4": None}
    return {"engine": "0.32.0", "device": "cpu", **more, **changes}


def test_loads_are_told_in_the_order_of_their_size() -> None:
    metrics = engine_metrics(best={"1": 5, "16": None, "4": None})
    for length in metrics["draft_lengths"].values():  # as JSON with sorted keys has them
        length["loads"] = dict.fromkeys(("1", "16", "4"), length["loads"]["1"])
    assert InEngine.parse(metrics, "engine.json").told.endswith("1.20 at 1, 1.20 at 4, 1.20 at 16 requests at once")


def test_what_the_engine_made_of_it_is_told() -> None:
    found = InEngine.parse(engine_metrics(), "engine.json")
    assert found.difference == -0.012
    assert found.told == (
        "vLLM 0.32.0 (cpu): acceptance length 1.900 [1.800, 2.000], -1.2% beside our own decoding; "
        "speedup 1.20 at 1, 1.10 at 4 requests at once"
    )
    assert InEngine.parse({"skipped": "there is none"}, "engine.json") == SKIPPED
    assert found.speedups == {1: Interval(1.4, 1.4 - 0.1, 1.4 + 0.1), 4: Interval(1.1, 1.1 - 0.1, 1.1 + 0.1)}
    wrong: list[dict[str, Any]] = [{"draft_tokens": 4}, {"draft_lengths": {"3": {}}}, {"best": {}}]
    for broken in ({}, *(engine_metrics(**change) for change in wrong)):
        with pytest.raises(DataError, match=r"engine\.json lacks a figure .* run the benchmark again"):
            InEngine.parse(broken, "engine.json")
