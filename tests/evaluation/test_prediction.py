"""Predicted speedups: made-up times whose answers are known by hand, and what must hold for any."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import DataError
from specdec.evaluation.prediction import (
    StepTimes,
    acceptance_length,
    best_settings,
    chain,
    overhead_of,
    predict,
    relative_distance,
    static_tree,
)

# One sequence: 1 to 8 tokens in the same second. Sixteen: each token costs.
TIMES = StepTimes(
    base={1: {1: 1.0, 8: 1.0, 16: 5.0}, 16: {1: 2.0, 8: 9.0, 16: 17.0}}, draft={1: 0.25, 2: 0.5, 4: 1.0}, context=64
)
RATES = [[0.5, 0.25], [0.5, 0.25], [0.5, 0.25], [0.5, 0.25]]
TREE = static_tree("two by two", [(0,), (1,), (0, 0), (0, 1), (1, 0)])


def test_a_chain_by_hand() -> None:
    found = predict(TIMES, RATES, chain(2), 1)
    assert found.acceptance_length == 1 + 0.5 + 0.25
    assert found.speedup == pytest.approx(1.75 / (0.5 + 1.0))
    late = predict(replace(TIMES, overhead=0.25), RATES, chain(2), 1)
    assert late.speedup == pytest.approx(1.75 / (0.5 + 1.0 + 0.25))


def test_a_tree_by_hand() -> None:
    """0.5 + 0.25 in the first level; 0.5 * 0.5, 0.5 * 0.25 and 0.25 * 0.5 below; timed as a chain of two."""
    found = predict(TIMES, RATES, TREE, 1)
    assert found.acceptance_length == pytest.approx(1 + 0.75 + 0.25 + 0.125 + 0.125)
    assert found.speedup == pytest.approx(2.25 / (0.5 + 1.0))
    assert (TREE.tokens, TREE.depth) == (5, 2)


def test_a_larger_batch_by_hand() -> None:
    """Base: 1 token in 2 s, 3 tokens in 2 + 2 s; the drafter takes twice its time, as one token of the base does."""
    found = predict(TIMES, RATES, chain(2), 16)
    assert found.speedup == pytest.approx(1.75 * 2.0 / (2 * 0.5 + 4.0))
    # A batch of 6 lies a third of the way from 1 to 16: 1 token in 4/3 s, 3 tokens in 2 s.
    found = predict(TIMES, RATES, chain(2), 6)
    assert found.speedup == pytest.approx(1.75 * 4 / 3 / (0.5 * 4 / 3 + 2.0))


def test_the_best_setting_of_each_batch_size() -> None:
    """Alone, the tree's tokens are free; in a large batch no draft pays; free drafts of no use are not taken."""
    best = best_settings(TIMES, RATES, [chain(1), chain(2), chain(4), TREE], [1, 16])
    assert {size: found.setting.name for size, found in best.items()} == {1: "two by two", 16: "chain of 0"}
    assert best[16].speedup == 1
    chains = best_settings(TIMES, RATES, map(chain, (1, 2, 4)), [1])
    # 1.5 / 1.25 = 1.2, 1.75 / 1.5 = 1.167, 1.9375 / 2
    assert (chains[1].setting.name, chains[1].speedup) == ("chain of 1", pytest.approx(1.2))
    free = replace(TIMES, draft=dict.fromkeys(range(1, 5), 0.0))
    assert best_settings(free, [[0.5], [0.0], [0.0]], map(chain, (3, 1, 2)), [1])[1].setting.name == "chain of 1"


def test_between_measured_points_and_not_outside() -> None:
    assert TIMES.base_seconds(12, 1) == pytest.approx(3.0)
    assert TIMES.draft_seconds(3, 1) == pytest.approx(0.75)
    assert TIMES.draft_seconds(0, 16) == 0
    with pytest.raises(DataError, match=r"^a pass of the base over .* 17 was not measured \(1 to 16 were\)"):
        TIMES.base_seconds(17, 1)
    with pytest.raises(DataError, match=r"^a batch size of 32 was not measured \(1 to 16 were\)"):
        predict(TIMES, RATES, chain(1), 32)
    with pytest.raises(DataError, match=r"^drafting a chain of 5 was not measured \(1 to 4 were\)"):
        predict(TIMES, [*RATES, [0.5]], chain(5), 1)
    with pytest.raises(DataError, match=r"^drafting a chain of 1 was not measured \(none was\)"):
        predict(replace(TIMES, draft={}), RATES, chain(1), 1)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        ([(0,), (1, 0)], r"has node \[1, 0\] without \[1\] above it"),
        ([(0,), (0,)], "has a path twice"),
        ([()], "has a path twice, or an empty one"),
        ([(-1,)], r"has node \[-1\]: ranks count from 0"),
    ],
)
def test_no_trees(paths: list[tuple[int, ...]], why: str) -> None:
    with pytest.raises(DataError, match=f"^tree 'T' {why}"):
        static_tree("T", paths)


def test_rates_that_are_missing_or_none() -> None:
    with pytest.raises(DataError, match=r"^chain of 5: there is no rate for rank 0 at depth 4"):
        acceptance_length(RATES, chain(5))
    with pytest.raises(DataError, match=r"^T: there is no rate for rank 2 at depth 0"):
        acceptance_length(RATES, static_tree("T", [(2,)]))
    for rates in ([0.75, 0.5], [-0.1], [1.1], [float("nan")]):
        with pytest.raises(DataError, match=r"^the rates at depth 1 are no chances"):
            acceptance_length([[0.5], rates], chain(1))
    with pytest.raises(DataError, match=r"^a chain of -1 tokens"):
        chain(-1)


def test_distances_and_overhead() -> None:
    assert relative_distance(1.8, 2.0) == pytest.approx(0.1)
    assert relative_distance(2.2, 2.0) == pytest.approx(0.1)
    with pytest.raises(DataError, match="measurement of 0"):
        relative_distance(1.0, 0.0)
    assert overhead_of(1.75, TIMES, chain(2)) == pytest.approx(0.25)
    assert overhead_of(1.0, TIMES, chain(2)) == 0
    known = replace(TIMES, overhead=overhead_of(1.75, TIMES, chain(2)))
    assert predict(known, RATES, chain(2), 1).speedup == pytest.approx(1.75 * 1.0 / 1.75)


def test_json() -> None:
    assert json.loads(json.dumps(TIMES.as_dict()))["base"]["16"]["8"] == 9.0
    assert json.loads(json.dumps(predict(TIMES, RATES, TREE, 1).as_dict())) == {
        "setting": {"name": "two by two", "depth": 2, "tokens": 5},
        "batch_size": 1,
        "acceptance_length": 2.25,
        "speedup": 1.5,
    }


seconds = st.floats(1e-4, 10)
row = st.fixed_dictionaries(dict.fromkeys((1, 4, 12), seconds))
times = st.builds(
    StepTimes,
    base=st.fixed_dictionaries({1: row, 8: row}),
    draft=st.fixed_dictionaries(dict.fromkeys((1, 4), seconds)),
    context=st.just(10),
    overhead=st.floats(0, 1),
)
rates = st.lists(
    st.lists(st.floats(0, 0.5), min_size=2, max_size=2), min_size=4, max_size=4
)  # of ranks 0 and 1, together 1 at most
settings = st.sampled_from([chain(0), chain(1), chain(3), chain(4), TREE])


@given(times=times, rates=rates, setting=settings, size=st.integers(1, 8), data=st.data())
def test_more_acceptance_is_never_slower(
    times: StepTimes, rates: list[list[float]], setting: object, size: int, data: st.DataObject
) -> None:
    better = [list(row) for row in rates]
    depth, rank = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 1))
    better[depth][rank] = data.draw(st.floats(better[depth][rank], 0.5))
    assert isinstance(setting, type(TREE))
    before, after = predict(times, rates, setting, size), predict(times, better, setting, size)
    assert after.speedup >= before.speedup * (1 - 1e-12)
    assert 1 <= before.acceptance_length <= 1 + setting.depth + 1e-9


@given(times=times, rates=rates, size=st.integers(1, 8))
def test_no_draft_is_exactly_1_and_the_best_never_below(
    times: StepTimes, rates: list[list[float]], size: int
) -> None:
    assert predict(times, rates, chain(0), size).speedup == 1
    some = [chain(2), TREE]
    best = best_settings(times, rates, some, [size])[size]
    assert best.speedup == max(1, *(predict(times, rates, setting, size).speedup for setting in some))


@given(times=times, rates=rates, setting=settings, size=st.integers(1, 8), factor=st.sampled_from([0.5, 4.0]))
def test_a_faster_machine_changes_nothing(
    times: StepTimes, rates: list[list[float]], setting: object, size: int, factor: float
) -> None:
    assert isinstance(setting, type(TREE))
    scaled = StepTimes(
        {size: {n: factor * s for n, s in row.items()} for size, row in times.base.items()},
        {k: factor * s for k, s in times.draft.items()},
        times.context,
        factor * times.overhead,
    )
    first = predict(times, rates, setting, size).speedup
    assert predict(scaled, rates, setting, size).speedup == pytest.approx(first)
