"""The aliases of a registered model: `champion` is served, `previous` was, `challenger` is the best other.

An alias is moved by one write in MLflow; a change of champion takes several. What is to be done is written down
first, in the registered model's tag `specdec.moving`, and taken away last. A process that dies in between leaves only
aliases that point to whole versions, and whoever comes next finishes its move: no `previous` is forgotten.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from specdec.tracking.store import Store, speaking

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
MOVING = "specdec.moving"
BY_HAND = "specdec.promoted_by_hand"


@dataclass(frozen=True)
class Move:
    """A change of champion. before: the champion until then. told: for the version's tag, where a person has decided.
    back: to the one that was before."""

    version: str
    before: str | None
    told: str = ""
    back: bool = False

    @classmethod
    def parse(cls, text: str) -> "Move | None":
        """None for a text that someone else has written."""
        try:
            found = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError):
            return None
        return found if isinstance(found.version, str) and isinstance(found.told, str) else None


def aliases_of(store: Store, model: str) -> dict[str, str]:
    """Alias to version, without those of versions that are gone.

    (Asking for a missing alias is an error in MLflow; asking for all is not.)
    """
    with speaking(store.location):
        found = store.client.get_registered_model(model).aliases
        there = {str(v.version) for v in store.client.search_model_versions(f"name = '{model}'")} if found else set()
    return {str(alias): str(version) for alias, version in found.items() if str(version) in there}


def promote(store: Store, model: str, version: str, told: str = "", back: bool = False) -> None:
    """Makes `version` the champion, and the old champion `previous`. Nothing changes when it is already."""
    old = aliases_of(store, model).get(CHAMPION)
    if old == version:
        _drop_challenger(store, model, version)
        return
    move = Move(version, old, told, back)
    with speaking(store.location):
        store.client.set_registered_model_tag(model, MOVING, json.dumps(asdict(move)))
    _carry_out(store, model, move)


def finish_move(store: Store, model: str) -> Move | None:
    """Ends what a killed process began: the move, or None where there was none, or somebody has moved on since."""
    with speaking(store.location):
        text = store.client.get_registered_model(model).tags.get(MOVING)
    if text is None:
        return None
    move = Move.parse(text)
    if move is not None and _still_stands(store, model, move):
        _carry_out(store, model, move)
        return move
    with speaking(store.location):
        store.client.delete_registered_model_tag(model, MOVING)
    return None


def challenge(store: Store, model: str, version: str) -> None:
    """Makes `version` the challenger."""
    if aliases_of(store, model).get(CHALLENGER) != version:
        with speaking(store.location):
            store.client.set_registered_model_alias(model, CHALLENGER, version)


def _still_stands(store: Store, model: str, move: Move) -> bool:
    """Whether the champion is one of the two between which it moves, and both versions are there."""
    with speaking(store.location):
        there: set[Any] = {str(v.version) for v in store.client.search_model_versions(f"name = '{model}'")}
    champion = aliases_of(store, model).get(CHAMPION)
    return champion in (move.before, move.version) and {move.version, move.before or move.version} <= there


def _carry_out(store: Store, model: str, move: Move) -> None:
    """Every write can be repeated."""
    with speaking(store.location):
        if move.told:
            store.client.set_model_version_tag(model, move.version, BY_HAND, move.told)
        if move.before is not None:
            store.client.set_registered_model_alias(model, PREVIOUS, move.before)
        store.client.set_registered_model_alias(model, CHAMPION, move.version)
    _drop_challenger(store, model, move.version)
    with speaking(store.location):
        store.client.delete_registered_model_tag(model, MOVING)


def _drop_challenger(store: Store, model: str, version: str) -> None:
    if aliases_of(store, model).get(CHALLENGER) == version:
        with speaking(store.location):
            store.client.delete_registered_model_alias(model, CHALLENGER)
