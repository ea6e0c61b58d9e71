"""Which champion others have been told of, as a tag of the registered model: whoever serves it wants to know."""

from dataclasses import dataclass
from pathlib import Path

from specdec.tracking.promotion import CHAMPION, aliases_of
from specdec.tracking.release import NoRegistry, open_registry
from specdec.tracking.store import speaking

_TOLD = "specdec.announced"


@dataclass(frozen=True)
class Change:
    """version: the champion now. previous: the one that was told of before; None: this is the first."""

    model: str
    version: str
    previous: str | None


def untold_change(root: Path) -> Change | None:
    """A champion that nobody was told of yet, whoever made it one; None where there is none."""
    try:
        store, name = open_registry(root)
    except NoRegistry:
        return None
    version = aliases_of(store, name).get(CHAMPION)
    with speaking(store.location):
        told = store.client.get_registered_model(name).tags.get(_TOLD)
    return Change(name, version, told) if version is not None and version != told else None


def mark_told(root: Path, change: Change) -> None:
    """To be called when the word is out: one that dies before tells it again, rather than never."""
    store, name = open_registry(root)
    with speaking(store.location):
        store.client.set_registered_model_tag(name, _TOLD, change.version)
