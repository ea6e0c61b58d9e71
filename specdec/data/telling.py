"""A line now and then while something long goes on, with how far it is."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def telling(
    say: Callable[[str], None],
    what: str,
    items: Iterable[Item],
    size: Callable[[Item], int] = lambda _: 1,
    every: float = 5.0,
) -> Iterator[Item]:
    """The items; says `what` with the number of those that passed (each counts `size`), every `every` seconds."""
    told, passed = time.monotonic(), 0
    for item in items:
        yield item
        passed += size(item)
        if time.monotonic() - told >= every:
            told = time.monotonic()
            say(f"{what}: {passed:,}")
