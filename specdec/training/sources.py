"""Who runs the base to fill a feature cache, where it is not this process."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from specdec.data.packing import PackedRow
from specdec.drafters import Features

Run = Callable[[list[PackedRow]], Features]


@dataclass(frozen=True)
class StateSource:
    """A server that hands out the base's states.

    about: all that decides its states beside the base and the rows, for the cache's address. at_once: packed rows of
    one call. opened: the server, for as long as the block lasts; one process opens it, and only where something is
    missing.
    """

    about: dict[str, Any]
    at_once: int
    opened: Callable[[], AbstractContextManager[Run]]
