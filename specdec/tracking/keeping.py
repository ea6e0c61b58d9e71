"""Which versions of a registered model stay."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

LATELY = timedelta(days=30)  # a promotion by hand: a person looked at this version


@dataclass(frozen=True)
class Known:
    """ours: specdec registered it. by_hand: when it was last promoted so."""

    number: int
    ours: bool = True
    aliases: tuple[str, ...] = ()
    by_hand: datetime | None = None


def reasons_to_keep(versions: Sequence[Known], newest: int, named: Collection[int], now: datetime) -> dict[int, str]:
    """{version: why it stays}; one that is not in it may go. named: versions that the project's files speak of."""
    young = sorted((v.number for v in versions), reverse=True)[:newest]
    reasons = {v.number: _reason(v, v.number in young, v.number in named, now) for v in versions}
    return {number: reason for number, reason in reasons.items() if reason}


def _reason(version: Known, young: bool, named: bool, now: datetime) -> str:
    if not version.ours:
        return "not registered by specdec"
    if version.aliases:
        return ", ".join(version.aliases)
    if named:
        return "named by this project's files"
    if version.by_hand is not None and now - version.by_hand < LATELY:
        return f"promoted by hand on {version.by_hand:%Y-%m-%d}"
    return "among the newest" if young else ""
