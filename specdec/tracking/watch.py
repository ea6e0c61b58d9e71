"""A served drafter, watched: what its server has accepted since the last look, beside what its version promised.

The server's counters are read at intervals (`specdec.serving.counters`). Between two looks at which enough was
drafted lies one reading; all readings together are tested for a drop (`specdec.evaluation.drift`). The state is
written down after every look, so that a watch which was stopped goes on; a server that has started anew begins from
0, and neither its restart nor a time in which nobody watched is a drop.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specdec.errors import TrackingError
from specdec.evaluation.drift import Drift
from specdec.io import write_json
from specdec.serving.counters import Counters
from specdec.tracking.card import position_rates_of
from specdec.tracking.checkpoints import look_up
from specdec.tracking.fetch_version import version_address
from specdec.tracking.lineage import read_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Promise:
    """What a version was registered with. rates: share of steps that accept each draft position."""

    model: str
    version: str
    rates: tuple[float, ...]

    def share(self, tokens: int) -> float:
        """Of drafted tokens that are accepted, in chains of so many."""
        return sum(self.rates[:tokens]) / tokens

    def acceptance_length(self, tokens: int) -> float:
        return 1 + sum(self.rates[:tokens])


@dataclass(frozen=True)
class WatchSettings:
    """least_drafts: steps with drafts in one reading; fewer wait for the next look. drop: share of the promised
    acceptance that may be lost. false_alarms: chance of an alarm, ever, while nothing is lost beyond it."""

    least_drafts: int = 500
    drop: float = 0.1
    false_alarms: float = 0.01


@dataclass(frozen=True)
class Look:
    """One reading. tokens: drafted a step. readings: so far. evidence: of a drop, up to 1. alarm: it is real."""

    drafts: int
    tokens: int
    acceptance_length: float
    promised: float
    position_rates: list[float]
    readings: int
    evidence: float
    alarm: bool

    def __str__(self) -> str:
        rates = " ".join(f"{rate:.2f}" for rate in self.position_rates)
        told = "DROP" if self.alarm else f"evidence for an alarm {self.evidence:.0%}"
        return (
            f"acceptance length {self.acceptance_length:.3f} (promised {self.promised:.3f}), by position {rates}, "
            f"{self.drafts:,} steps; {told}"
        )


def promise_of(given: str, root: Path) -> Promise:
    """Of a version: its number, an alias or an address. Raises TrackingError where it has no rates."""
    address = version_address(given, root)
    _, version = look_up(address)
    rates = position_rates_of(version.tags.get("specdec.position_rates"))
    if not rates:
        raise TrackingError(f"{address} does not say what it promises: register the drafter again")
    return Promise(str(version.name), str(version.version), tuple(rates))


class Watch:
    """Of one server that serves one version. folder: where its state is kept."""

    def __init__(self, promise: Promise, url: str, settings: WatchSettings, folder: Path, say: Say):
        self._promise, self._settings, self._say = promise, settings, say
        name = hashlib.sha256(url.encode()).hexdigest()[:12]
        self.file = folder / f"{promise.model}-{promise.version}-{name}.json"
        found = read_json(self.file)
        self._state: dict[str, Any] = found if _fits(found) else {"counters": None, "tokens": None, "drift": None}

    def look(self, now: Counters) -> Look | None:
        """One more look at the server's counters; None where there is too little to say anything."""
        before = self._state["counters"]
        try:
            since = now - _counters(before) if before else None
        except ValueError:
            self._say("the server has started anew: its counters begin again")
            since = None
        if since is None:
            self._keep(counters=asdict(now))
            return None
        if since.drafts < max(1, self._settings.least_drafts):
            return None
        tokens = round(since.drafted / since.drafts)
        drift = self._drift(tokens).read(min(1.0, since.accepted / max(1, since.drafted)))
        self._keep(counters=asdict(now), tokens=tokens, drift=asdict(drift))
        promised = self._promise.acceptance_length(tokens)
        length, rates = since.acceptance_length, since.position_rates
        return Look(since.drafts, tokens, length, promised, rates, drift.readings, drift.evidence, drift.alarm)

    def forget(self) -> None:
        """Begins anew: after an alarm that was answered."""
        self._keep(drift=None)

    def _drift(self, tokens: int) -> Drift:
        """The test so far; a new one where the server drafts another number of tokens now."""
        if self._state["drift"] and self._state["tokens"] == tokens:
            return Drift(**self._state["drift"])
        if tokens > len(self._promise.rates):
            raise TrackingError(
                f"the server drafts {tokens} tokens a step, and version {self._promise.version} of "
                f"{self._promise.model} promises {len(self._promise.rates)} positions: watch another version, or "
                "serve fewer"
            )
        floor = self._promise.share(tokens) * (1 - self._settings.drop)
        return Drift(min(max(floor, 1e-3), 1 - 1e-3), self._settings.false_alarms)

    def _keep(self, **changes: Any) -> None:
        self._state = self._state | changes
        write_json(self.file, self._state)


def _counters(found: dict[str, Any]) -> Counters:
    return replace(Counters(**found), accepted_at=tuple(found["accepted_at"]))


def _fits(found: dict[str, Any]) -> bool:
    """Whether this is a state of ours: a file that someone has changed begins anew."""
    try:
        if found["counters"]:
            _counters(found["counters"])
        if found["drift"]:
            Drift(**found["drift"])
    except (KeyError, TypeError, ValueError):
        return False
    return set(found) == {"counters", "tokens", "drift"}
