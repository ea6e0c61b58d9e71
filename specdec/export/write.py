"""The way out: a drafter -> a folder in the layout of another, with the settings that its engine is started with."""

from pathlib import Path

from specdec.drafters import Drafter
from specdec.errors import ConfigError
from specdec.export.content import Paths
from specdec.export.load import BY_OPTION

WRITABLE = tuple(option for option, layout in BY_OPTION.items() if layout.write is not None)


def write_as(layout: str, drafter: Drafter, folder: Path, base: str) -> None:
    """Replaces `folder`, whole or not at all, with the weights in the type that the drafter has.

    layout: one of `WRITABLE`. base: the base as the engine shall find it. The folder's own path, as it is given,
    stands in the launch settings. Raises ModelError, in one line, for what the layout cannot say or its engine would
    compute in another way.
    """
    write = BY_OPTION[layout].write if layout in BY_OPTION else None
    if write is None:
        raise ConfigError(f"layout is {layout!r}: choose one of {', '.join(WRITABLE)}")
    write(drafter, Paths(base, str(folder))).write(folder)
