"""What each answer is sampled with: shares, spread, seeds; all of it by the row alone."""

import collections
import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from specdec.config import Sampling
from specdec.synthesis.request import Draw, row_seed
from tests.settings import sampling


def mixed(samples: int, **shares: float) -> Sampling:
    """`t07=0.5` is a share of one half at 0.7."""
    parts = [{"temperature": int(name[1:]) / 10, "share": share} for name, share in shares.items()]
    return sampling(samples=samples, temperatures=parts)


def ids(count: int) -> list[str]:
    return [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]


def drawn(settings: Sampling, row_id: str) -> list[float]:
    return [Draw.of(settings, row_id, sample).temperature for sample in range(settings.samples)]


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_each_temperature_has_its_share(samples: int) -> None:
    settings = mixed(samples, t00=0.2, t05=0.3, t10=0.5)
    counts = collections.Counter(t for row_id in ids(20_000) for t in drawn(settings, row_id))
    total = counts.total()
    for temperature, share in ((0.0, 0.2), (0.5, 0.3), (1.0, 0.5)):
        sigma = (share * (1 - share) / total) ** 0.5
        assert abs(counts[temperature] / total - share) < 5 * sigma


def test_the_samples_of_a_row_are_spread_evenly() -> None:
    settings = mixed(4, t00=0.25, t05=0.25, t10=0.5)
    for row_id in ids(500):
        assert sorted(drawn(settings, row_id)) == [0.0, 0.5, 1.0, 1.0]


def test_a_draw_depends_on_its_row_and_sample_alone() -> None:
    settings = mixed(3, t00=0.3, t10=0.7)
    forwards = {(i, s): Draw.of(settings, i, s) for i in ids(50) for s in range(3)}
    backwards = {(i, s): Draw.of(settings, i, s) for i in reversed(ids(50)) for s in (2, 1, 0)}
    assert forwards == backwards


@st.composite
def accepted_mixes(draw: Any) -> Sampling:
    """Any settings with a greedy share that the settings accept, often at the very edge of it."""
    samples = draw(st.integers(1, 9))
    greedy = draw(st.just(1 / samples) | st.floats(0.01, 1 / samples))
    assume(greedy < 1)
    cut = draw(st.floats(0.1, 0.9))
    parts = [(0.0, greedy), (0.7, (1 - greedy) * cut), (1.0, (1 - greedy) * (1 - cut))]
    order = draw(st.permutations(parts))
    try:
        return sampling(samples=samples, temperatures=[{"temperature": t, "share": s} for t, s in order])
    except ValidationError:
        assume(False)
        raise


@given(settings=accepted_mixes(), number=st.integers(0, 10**6))
def test_a_row_has_the_greedy_answer_at_most_once(settings: Sampling, number: int) -> None:
    assert drawn(settings, hashlib.sha256(str(number).encode()).hexdigest()).count(0.0) <= 1


@pytest.mark.parametrize("samples", range(2, 10))
def test_a_greedy_share_of_one_sample_is_greedy_exactly_once(samples: int) -> None:
    rest = 1 - 1 / samples
    settings = mixed(samples, t10=rest / 2, t00=1 / samples, t05=rest / 2)
    counts = collections.Counter(drawn(settings, row_id).count(0.0) for row_id in ids(2000))
    assert counts[1] == 2000


def test_seeds_are_distinct_and_fit() -> None:
    places = list(itertools.product(ids(20), range(5), range(5), range(5)))
    seeds = {row_seed(*place) for place in places}
    assert len(seeds) >= len(places) - 2  # of 2^31
    assert all(0 <= seed < 2**31 for seed in seeds)
    for one, other in (
        (("a", 0, 0, 0), ("a", 1, 0, 0)),
        (("a", 0, 0, 0), ("a", 0, 1, 0)),
        (("a",) + (0,) * 3, ("b",) + (0,) * 3),
    ):
        assert row_seed(*one) != row_seed(*other)
