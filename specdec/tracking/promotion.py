"""The aliases of a registered model: `champion` is served, `previous` was, `challenger` is the best other.

An alias is moved by one write in MLflow. The writes are in such an order that a process that dies between
them leaves only aliases that point to whole versions, and the next run finishes.
"""

from specdec.tracking.store import Store, speaking

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"


def aliases_of(store: Store, model: str) -> dict[str, str]:
    """Alias to version. (Asking for a missing alias is an error in MLflow; asking for all is not.)"""
    with speaking(store.location):
        found = store.client.get_registered_model(model).aliases
    return {str(alias): str(version) for alias, version in found.items()}


def promote(store: Store, model: str, version: str) -> None:
    """Makes `version` the champion, and the old champion `previous`. Nothing changes when it is already."""
    old = aliases_of(store, model).get(CHAMPION)
    with speaking(store.location):
        if old != version:
            if old is not None:
                store.client.set_registered_model_alias(model, PREVIOUS, old)
            store.client.set_registered_model_alias(model, CHAMPION, version)
    _drop_challenger(store, model, version)


def challenge(store: Store, model: str, version: str) -> None:
    """Makes `version` the challenger."""
    if aliases_of(store, model).get(CHALLENGER) != version:
        with speaking(store.location):
            store.client.set_registered_model_alias(model, CHALLENGER, version)


def _drop_challenger(store: Store, model: str, version: str) -> None:
    if aliases_of(store, model).get(CHALLENGER) == version:
        with speaking(store.location):
            store.client.delete_registered_model_alias(model, CHALLENGER)
