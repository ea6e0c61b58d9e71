"""Progress lines count what passed and change nothing."""

from specdec.data.telling import telling


def test_all_items_pass_and_are_counted() -> None:
    lines: list[str] = []
    assert list(telling(lines.append, "rows", ["a", "bc", "d"], len, every=0)) == ["a", "bc", "d"]
    assert lines == ["rows: 1", "rows: 3", "rows: 4"]


def test_silent_when_it_is_quick() -> None:
    lines: list[str] = []
    assert list(telling(lines.append, "rows", range(9))) == list(range(9))
    assert lines == []
