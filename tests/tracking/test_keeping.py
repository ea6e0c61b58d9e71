"""Which versions stay: what must hold of every choice."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from specdec.tracking.keeping import LATELY, Known, reasons_to_keep

NOW = datetime(2026, 6, 1, tzinfo=UTC)

numbers = st.lists(st.integers(1, 60), unique=True, max_size=20)
ages = st.none() | st.timedeltas(timedelta(0), timedelta(days=90))


@st.composite
def registries(draw: st.DrawFn) -> list[Known]:
    aliases = st.sampled_from([(), (), (), ("champion",), ("previous", "blue")])
    return [
        Known(n, draw(st.booleans()) or draw(st.booleans()), draw(aliases), None if age is None else NOW - age)
        for n in draw(numbers)
        for age in [draw(ages)]
    ]


@given(registries(), st.integers(1, 8), st.sets(st.integers(1, 60), max_size=4))
def test_what_goes_is_old_and_nobodys(versions: list[Known], newest: int, named: set[int]) -> None:
    kept = reasons_to_keep(versions, newest, named, NOW)
    assert all(kept.values())
    gone = [v for v in versions if v.number not in kept]
    for version in gone:
        assert version.ours
        assert not version.aliases
        assert version.number not in named
        assert version.by_hand is None or NOW - version.by_hand >= LATELY
        assert sum(other.number > version.number for other in versions) >= newest
    for version in versions:
        hold = not version.ours or version.aliases or version.number in named
        young = sum(other.number > version.number for other in versions) < newest
        lately = version.by_hand is not None and NOW - version.by_hand < LATELY
        assert (version.number in kept) == bool(hold or young or lately)


@given(registries(), st.integers(1, 8))
def test_a_second_time_nothing_goes(versions: list[Known], newest: int) -> None:
    kept = reasons_to_keep(versions, newest, (), NOW)
    left = [v for v in versions if v.number in kept]
    assert reasons_to_keep(left, newest, (), NOW).keys() == kept.keys()
    assert kept.keys() <= reasons_to_keep(versions, newest + 1, (), NOW).keys()


def test_the_reasons_that_are_shown() -> None:
    versions = [
        Known(1, aliases=("previous",)),
        Known(2, by_hand=NOW - timedelta(days=3)),
        Known(3, ours=False),
        Known(4),
        Known(5),
        Known(6, aliases=("challenger", "champion")),
    ]
    assert reasons_to_keep(versions, 1, {4}, NOW) == {
        1: "previous",
        2: "promoted by hand on 2026-05-29",
        3: "not registered by specdec",
        4: "named by this project's files",
        6: "challenger, champion",
    }
