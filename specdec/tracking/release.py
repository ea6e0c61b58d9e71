"""What a person does with the registry: sees the versions, makes one the champion, takes it back."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.errors import TrackingError
from specdec.tracking.approval import DECISION, GATE, WAITS, Approval, Overtaken, answered
from specdec.tracking.card import GATES
from specdec.tracking.fetch_version import version_address
from specdec.tracking.lineage import read_json
from specdec.tracking.model import holds_checkpoint
from specdec.tracking.promotion import BY_HAND, CHAMPION, PREVIOUS, Move, aliases_of, finish_move, promote
from specdec.tracking.store import Store, connect, if_there, locate, speaking

_TIME = "%Y-%m-%d %H:%M:%S"

Say = Callable[[str], None]


class NoRegistry(TrackingError):
    """Nothing has been registered yet."""


@dataclass(frozen=True)
class Version:
    """One version as text. aliases: `champion`, `previous`, `challenger`. missed: gates, with their figures."""

    number: str
    drafter: str
    aliases: list[str]
    acceptance_length: str
    speedup: str
    missed: list[str]
    made: str


def list_versions(root: Path) -> tuple[str, list[Version]]:
    """(the registered model, its versions, newest first). Raises TrackingError where there is no registry yet."""
    store, name = open_registry(root)
    names: dict[str, list[str]] = {}
    for alias, number in sorted(aliases_of(store, name).items()):
        names.setdefault(number, []).append(alias)
    with speaking(store.location):
        found = store.client.search_model_versions(f"name = '{name}'")
    return name, [_version(v, names) for v in sorted(found, key=lambda v: -int(v.version))]


def promote_by_hand(root: Path, number: str, force: bool, say: Say, approval: Approval | None = None) -> None:
    """Makes a version the champion. Raises TrackingError where it does not exist, lacks its checkpoint, is of
    another base than the project's, or has missed a gate; force: in spite of base and gates. approval: who said so
    and beside which champion; another one since raises Overtaken."""
    store, name = open_registry(root)
    with _alone(root):
        _finish(store, name, say)
        version = _get(store, name, number)
        champion = aliases_of(store, name).get(CHAMPION)
        if champion == number:
            _write_down(store, name, version, approval)
            say(f"version {number} of {name} is the champion already")
            return
        if approval is not None and champion != approval.champion:
            raise Overtaken(
                f"version {number} of {name} is not promoted: it was approved beside {_called(approval.champion)}, "
                f"and the champion is {_called(champion)} by now: compare the two with `dvc repro -f -s register`"
            )
        _check(store, name, version, root, force)
        _move(store, name, Move(number, champion))
        _write_down(store, name, version, approval)
    say(f"version {number} of {name} is the champion now; {_before(champion)}")


def _write_down(store: Store, name: str, version: Any, approval: Approval | None) -> None:
    """That it waits no longer, and who said so."""
    if approval is not None or version.tags.get(GATE) == WAITS:
        words = "promoted by hand" if approval is None else approval.words("approved")
        _answer(store, name, version, words, "passed")


def _answer(store: Store, name: str, version: Any, words: str, gate: str) -> None:
    """The gate comes last: while it says that the version waits, a killed answer is written down when said again."""
    number, decision = str(version.version), version.tags.get(DECISION, "")
    with speaking(store.location):
        if answered(decision, words) != decision:
            store.client.set_model_version_tag(name, number, DECISION, answered(decision, words))
        store.client.set_model_version_tag(name, number, GATE, f"{gate}: {words}")


def rollback(root: Path, force: bool, say: Say) -> None:
    """Makes `previous` the champion again, and the champion `previous`. Raises TrackingError as `promote_by_hand`
    does, but for gates: it was a champion. One that was killed half-way is finished, and that is all."""
    store, name = open_registry(root)
    with _alone(root):
        finished = _finish(store, name, say)
        if finished is not None and finished.back:
            return
        aliases = aliases_of(store, name)
        champion, number = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if number is None or number == champion:
            raise TrackingError(f"{name} has no version before its champion: there is nothing to go back to")
        _check(store, name, _get(store, name, number), root, force, gates=False)
        _move(store, name, Move(number, champion, back=True))
    say(f"version {number} of {name} is the champion again; {_before(champion)}")


def refuse(root: Path, number: str, approval: Approval, say: Say) -> None:
    """Writes to a version who does not want it and why: from now on it misses a gate. Raises Overtaken where it is
    the champion already."""
    store, name = open_registry(root)
    with _alone(root):
        _finish(store, name, say)
        version = _get(store, name, number)
        if aliases_of(store, name).get(CHAMPION) == number:
            raise Overtaken(f"version {number} of {name} is not refused: it has become the champion since")
        _answer(store, name, version, approval.words("refused"), "missed")
    say(f"version {number} of {name} is refused: {approval.words('refused')}")


def promoted_by_hand(version: Any) -> datetime | None:
    """When a version was last made the champion by a person, as its tag says."""
    try:
        return datetime.strptime(version.tags[BY_HAND][:19], _TIME).replace(tzinfo=UTC)
    except (KeyError, ValueError):  # never; or somebody has changed the tag
        return None


def open_registry(root: Path) -> tuple[Store, str]:
    """(the store, the registered model of this project). Raises NoRegistry before the first run."""
    location = locate(root)
    if location.database is not None and not location.database.exists():  # `connect` would make it
        raise NoRegistry(f"there is no registry yet ({location.shown}): run the pipeline, or set MLFLOW_TRACKING_URI")
    name = version_address("0", root).removeprefix("models:/").rpartition("/")[0]
    store = connect(root)
    if if_there(store, lambda: store.client.get_registered_model(name)) is None:
        raise NoRegistry(f"{store.location.shown} has no model {name}: run the pipeline, which registers it")
    return store, name


def _alone(root: Path) -> FileLock:
    """The lock of registration: of two that promote at once the second sees what the first has done."""
    (root / ".specdec").mkdir(exist_ok=True)
    return FileLock(root / ".specdec" / "register.lock")


def _get(store: Store, name: str, number: str) -> Any:
    with speaking(store.location):
        found = {str(v.version): v for v in store.client.search_model_versions(f"name = '{name}'")}
    if number not in found:
        there = ", ".join(sorted(found, key=int)) or "none"
        raise TrackingError(f"{name} has no version {number}: it has {there}")
    return found[number]


def _check(store: Store, name: str, version: Any, root: Path, force: bool, gates: bool = True) -> None:
    called = f"version {version.version} of {name}"
    if not holds_checkpoint(store, version):
        raise TrackingError(f"{called} lacks its checkpoint in {store.location.shown}: register the drafter again")
    if force:
        return
    base = read_json(root / "models" / "base" / "specdec.json").get("identity") or {}
    trained_on = version.tags.get("specdec.base.weights")
    if base.get("weights") and trained_on and trained_on != base["weights"]:
        raise TrackingError(
            f"{called} was trained on another base (weights {trained_on[:12]}, models/base has "
            f"{base['weights'][:12]}): train a drafter for this one, or give --force"
        )
    missed = _missed(version)
    if gates and missed:
        raise TrackingError(f"{called} misses a gate: {'; '.join(missed)}: give --force to promote it all the same")


def _finish(store: Store, name: str, say: Say) -> Move | None:
    move = finish_move(store, name)
    if move is not None:
        say(
            f"finished what was interrupted: version {move.version} of {name} is the champion; {_before(move.before)}"
        )
    return move


def _move(store: Store, name: str, move: Move) -> None:
    at = datetime.now(UTC).strftime(f"{_TIME} UTC")
    promote(store, name, move.version, f"{at}, {_before(move.before)}", move.back)


def _called(champion: str | None) -> str:
    return f"version {champion}" if champion else "none"


def _before(champion: str | None) -> str:
    return f"before it was version {champion}" if champion else "there was none before"


def _version(version: Any, names: dict[str, list[str]]) -> Version:
    tags = version.tags
    made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return Version(
        str(version.version),
        tags.get("specdec.drafter", "?"),
        names.get(str(version.version), []),
        _interval(tags, "acceptance_length"),
        _interval(tags, "speedup"),
        _missed(version),
        made.strftime("%Y-%m-%d %H:%M"),
    )


def _missed(version: Any) -> list[str]:
    return [
        v.removeprefix("missed: ")
        for k, v in sorted(version.tags.items())
        if k.startswith(GATES) and v.startswith("missed")
    ]


def _interval(tags: dict[str, str], name: str) -> str:
    value, low, high = (tags.get(f"specdec.{name}.{end}", "") for end in ("value", "low", "high"))
    try:
        return f"{float(value):.2f} [{float(low):.2f}, {float(high):.2f}]"
    except ValueError:  # one prompt has no interval; a version of someone else's has nothing
        return value[:5] or "-"
