"""Measured times: what is timed is what decoding does, and its result has the right shape. No bound on seconds."""

import importlib
from typing import Any

import pytest
from torch import Tensor

from specdec.drafters import Drafter, DraftState, Proposal, new_drafter
from specdec.errors import DataError
from specdec.evaluation.prediction import chain, predict
from specdec.evaluation.step_times import measure_step_times
from specdec.targets import Target
from tests.settings import eagle3_settings, eagle_settings, medusa_settings

module = importlib.import_module("specdec.evaluation.step_times")


@pytest.mark.parametrize("make", [medusa_settings, eagle_settings, eagle3_settings])
def test_every_method_is_timed(target: Target, make: Any) -> None:
    drafter = new_drafter(target, make())
    times = measure_step_times(target, drafter, 20, 3, [2, 4], [3], repeats=2)
    assert {size: list(row) for size, row in times.base.items()} == {1: [1, 2, 4], 3: [1, 2, 4]}
    assert list(times.draft) == [1, 2, 3]
    assert all(s > 0 for row in (*times.base.values(), times.draft) for s in row.values())
    assert (times.context, times.overhead) == (20, 0)
    assert predict(times, [[0.5]] * 3, chain(3), 2).speedup > 0


def test_each_pass_reads_what_it_says(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass stands behind the same context; passes take turns, and the first round does not count."""
    passes: list[tuple[int, int, int]] = []
    choose = module._choose

    def listening(target: Target, token_ids: Tensor, cache: Any) -> Tensor:
        passes.append((*token_ids.shape, cache.get_seq_length()))
        found = choose(target, token_ids, cache)
        assert found.shape == token_ids.shape
        return found

    monkeypatch.setattr(module, "_choose", listening)
    clock = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    times = measure_step_times(target, new_drafter(target, medusa_settings()), 7, 2, [1, 3], [1, 2], repeats=2)
    assert passes == [(1, 1, 7), (1, 3, 7), (2, 1, 7), (2, 3, 7)] * 3
    assert times.base == {1: {1: 1.0, 3: 1.0}, 2: {1: 1.0, 3: 1.0}}


def test_medians_leave_the_first_round_out() -> None:
    assert module._medians({1: [100.0, 1.0, 9.0, 2.0]}) == {1: 2.0}


def test_drafting_starts_from_the_states_of_one_step(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = new_drafter(target, eagle3_settings())
    seen: list[tuple[int, int, int]] = []
    propose = drafter.propose

    def listening(state: DraftState, budget: int) -> Proposal:
        assert state.token_ids is not None
        assert state.hidden is not None
        known = state.cache.length if state.cache else 0
        seen.append((known, len(state.token_ids), budget))
        proposal = propose(state, budget)
        assert len(proposal.token_ids) == budget
        return proposal

    monkeypatch.setattr(drafter, "propose", listening)
    measure_step_times(target, drafter, 10, 3, [1], [1], repeats=1)
    rising = [(0, 10, 1), (10, 2, 1), (12, 2, 2), (14, 2, 3)]
    falling = [(0, 10, 1), (10, 2, 3), (12, 2, 2), (14, 2, 1)]
    assert seen == rising + falling


@pytest.fixture
def drafter(target: Target) -> Drafter:
    return new_drafter(target, medusa_settings())


def test_what_cannot_be_measured(target: Target, drafter: Drafter) -> None:
    for context, tokens, sizes, repeats in ((0, [1], [1], 1), (9, [0], [1], 1), (9, [1], [-1], 1), (9, [1], [1], 0)):
        with pytest.raises(DataError, match=r"must all be 1 or more$"):
            measure_step_times(target, drafter, context, 2, tokens, sizes, repeats)
    with pytest.raises(DataError, match=r"32 tokens behind a context of 225 do not fit .* 256: choose .* of 224 at"):
        measure_step_times(target, drafter, 225, 2, [32], [1])
    assert measure_step_times(target, drafter, 224, 2, [32], [1], 1).context == 224
