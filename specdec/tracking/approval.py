"""What a person says about a version that passes every gate, as one of its tags."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from specdec.errors import TrackingError
from specdec.tracking.values import redact, shorten

GATE = "specdec.gate.approval"
DECISION = "specdec.decision"  # the tag that says in words what became of the version, and why
WAITS = "waits for approval"
_REFUSED = "missed: "


class Overtaken(TrackingError):
    """A decision about what is no longer so: the champion changed since it was shown."""


@dataclass(frozen=True)
class Approval:
    """by, why: in the person's own words. champion: the version that was shown beside it; None: there was none."""

    by: str
    why: str
    champion: str | None

    def words(self, what: str) -> str:
        """`approved by Anna (2026-11-02 14:03 UTC): faster on code`; short enough for a tag, without secrets."""
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        by, why = (" ".join(text.split()) for text in (self.by, self.why))
        return shorten(redact(f"{what} by {by or 'somebody'} ({at})" + (f": {why}" if why else "")))


def answered(decision: str, words: str) -> str:
    """The words of a decision, with what a person said where they ended with its waiting; others stay."""
    before = decision.removesuffix(WAITS)
    return decision if before == decision else before + words


def refusal_of(tags: Mapping[str, str]) -> str | None:
    """The words of a refusal; None where nobody refused the version."""
    told = tags.get(GATE, "")
    return told.removeprefix(_REFUSED) if told.startswith(_REFUSED) else None
