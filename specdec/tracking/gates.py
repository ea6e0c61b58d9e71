"""What a version must show before it may become the champion. Pure: figures in, decisions in words out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from specdec.config import Register
from specdec.errors import DataError
from specdec.tracking.approval import WAITS

APPROVAL = "approval"  # the gate that a person's refusal closes
COMPARED = "compared_with_champion"  # the gate that a champion closes which could be measured, and was not


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval; the ends are None where one prompt alone was measured."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def parse(cls, figure: Mapping[str, Any]) -> "Interval":
        low, high = figure["low"], figure["high"]
        return cls(float(figure["value"]), None if low is None else float(low), None if high is None else float(high))

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class InEngine:
    """A drafter in vLLM. difference: of its acceptance length there from that of our own decoding, as a share;
    None where no vLLM was asked, and `told` says why. speedups: by requests at once, with the draft length that is
    fastest there (with the drafter's own, where none is faster than the base alone)."""

    difference: float | None
    told: str
    speedups: Mapping[int, Interval] = field(default_factory=dict)

    @classmethod
    def parse(cls, metrics: Mapping[str, Any], where: str) -> "InEngine":
        """From `metrics/engine/D.json`. Raises DataError naming `where` when a figure is missing."""
        if "skipped" in metrics:
            return cls(None, f"not tried in vLLM: {metrics['skipped']}")
        try:
            own = metrics["draft_lengths"][str(metrics["draft_tokens"])]
            length, difference = Interval.parse(own["acceptance_length"]), float(own["difference"])
            loads = sorted(own["loads"].items(), key=lambda load: int(load[0]))  # JSON sorts them as text
            speeds = [f"{load['speedup']['value']:.2f} at {requests}" for requests, load in loads]
            lengths = {n: str(metrics["best"][n] or metrics["draft_tokens"]) for n in own["loads"]}
            fastest = {n: metrics["draft_lengths"][length]["loads"][n] for n, length in lengths.items()}
            speedups = {int(n): Interval.parse(load["speedup"]) for n, load in fastest.items()}
            engine = f"vLLM {metrics['engine']} ({metrics['device']})"
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} lacks a figure ({error}): run the benchmark again") from None
        told = f"acceptance length {length}, {difference:+.1%} beside our own decoding"
        return cls(difference, f"{engine}: {told}; speedup {', '.join(speeds)} requests at once", speedups)


@dataclass(frozen=True)
class Figures:
    """What the evaluation measured. acceptance_length: tokens a step. speedup: times plain decoding. certificate:
    of losslessness, passed.

    conditions: hash of the test prompts, the base and the settings of the evaluation; only figures with the
    same one can be compared. engine: what a real vLLM made of it, or why none was asked. position_rates: of
    the drafter's own chain. categories: the acceptance length of each.
    """

    acceptance_length: Interval
    speedup: Interval
    lossless: bool
    certificate: bool
    conditions: str
    engine: InEngine
    position_rates: tuple[float, ...] = ()
    categories: Mapping[str, Interval] = field(default_factory=dict)

    @classmethod
    def parse(cls, metrics: Mapping[str, Any], engine: InEngine, conditions: str, where: str) -> "Figures":
        """From `metrics/evaluate/D.json`. Raises DataError naming `where` when a figure is missing."""
        try:
            return cls(
                Interval.parse(metrics["acceptance_length"]),
                Interval.parse(metrics["speedup"]),
                bool(metrics["lossless"]),
                bool(metrics["certificate"]),
                conditions,
                engine,
                tuple(map(float, metrics["position_rates"])),
                {k: Interval.parse(v["acceptance_length"]) for k, v in metrics.get("categories", {}).items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} lacks a figure ({error}): run the evaluation again") from None


@dataclass(frozen=True)
class Champion:
    """The version that is served now; None stands for what its tags do not tell. other_base: it was trained for
    another base than the candidates, on which it cannot be measured."""

    version: str
    speedup: float | None
    conditions: str | None
    identity: str | None
    categories: Mapping[str, Interval] = field(default_factory=dict)
    other_base: bool = False


@dataclass(frozen=True)
class Gate:
    """One condition: `value` must reach `needed`. value None: no interval, so nothing is shown."""

    gate: str
    value: float | bool | None
    needed: float | bool | None
    passed: bool

    def __str__(self) -> str:
        return f"{self.gate} {_short(self.value)} ({'needs' if self.passed else 'missed'} {_short(self.needed)})"


@dataclass(frozen=True)
class Candidate:
    """A drafter's version with its figures. identity: hash of the drafter, however the version packs it.
    refused: by whom and why a person said no to it; None: nobody did."""

    drafter: str
    version: str
    identity: str
    figures: Figures
    refused: str | None = None


@dataclass(frozen=True)
class Decision:
    """promoted: it is the champion after this. gates, reason: why, for machines and in words. waits: it would be,
    had a person said yes."""

    candidate: Candidate
    gates: list[Gate]
    promoted: bool
    reason: str
    waits: bool = False

    def record(self) -> dict[str, Any]:
        """For registry.json."""
        return {
            "promoted": self.promoted,
            "waits": self.waits,
            "gates": [asdict(g) for g in self.gates],
            "reason": self.reason,
            "engine": self.candidate.figures.engine.told,
        }


def decide(candidates: list[Candidate], settings: Register, champion: Champion | None) -> list[Decision]:
    """One decision a candidate, in the same order; at most one is promoted.

    Of those that pass every gate, the one with the highest speedup; the champion is beaten by speedup, too. It
    is never taken down by its own later figures: only a better version replaces it, or the same drafter packed
    in another way. Where a person must approve, that one waits, and the champion stays.
    """
    gates = [check(c, settings, champion) for c in candidates]
    passing = [c for c, g in zip(candidates, gates, strict=True) if all(x.passed for x in g)]
    winner = max(passing, key=lambda c: c.figures.speedup.value, default=None)
    asks = settings.promote == "approval"
    return [_decision(c, g, winner, champion, asks) for c, g in zip(candidates, gates, strict=True)]


def check(candidate: Candidate, settings: Register, champion: Champion | None) -> list[Gate]:
    """Every gate for one candidate. Intervals count by their lower end."""
    figures = candidate.figures
    gates = [
        Gate("lossless", figures.lossless, True, figures.lossless),
        Gate("certificate", figures.certificate, True, figures.certificate),
        _floor("acceptance_length", figures.acceptance_length.low, settings.min_acceptance_length),
        _floor("speedup", figures.speedup.low, settings.min_speedup),
        *_in_engine(figures.engine, settings),
    ]
    gates += _beside(candidate, champion)
    if candidate.refused is not None:
        gates.append(Gate(APPROVAL, False, True, False))
    return gates


def _beside(candidate: Candidate, champion: Champion | None) -> list[Gate]:
    """Nothing where there is no other champion, or none that could be measured on this base. One that could be and
    was not is no reason to promote: it may be the better one."""
    if champion is None or champion.other_base or _is_same(candidate, champion):
        return []
    rival = _rival(candidate, champion)
    if rival is None:
        return [Gate(COMPARED, False, True, False)]
    value = candidate.figures.speedup.value
    better = Gate("better_than_champion", value, rival, value > rival)
    return [better, *_by_category(candidate.figures.categories, champion.categories)]


def _by_category(ours: Mapping[str, Interval], champions: Mapping[str, Interval]) -> list[Gate]:
    """No category is worse than with the champion: its acceptance length is within reach of the interval. One prompt
    alone, which has none, shows nothing."""
    both = sorted(ours.keys() & champions.keys())
    shown = [(name, ours[name].high, champions[name].value) for name in both]
    return [Gate(f"category {n}", high, value, high >= value) for n, high, value in shown if high is not None]


def _in_engine(engine: InEngine, settings: Register) -> list[Gate]:
    """Served as predicted: a drafter that a server reads in another way is hardly accepted there."""
    if engine.difference is None:
        return [Gate("tried_in_engine", False, True, False)] if settings.require_engine else []
    apart, most = abs(engine.difference), settings.max_engine_difference
    gates = [Gate("engine_difference", apart, most, apart <= most)]
    if settings.served_requests is not None:
        found = engine.speedups.get(settings.served_requests)
        gates.append(_floor("served_speedup", found.low if found else None, settings.min_served_speedup))
    return gates


def _floor(gate: str, low: float | None, needed: float) -> Gate:
    return Gate(gate, low, needed, low is not None and low >= needed)


def _rival(candidate: Candidate, champion: Champion | None) -> float | None:
    """The champion's speedup, where it can be compared; None where there is nothing to beat."""
    if champion is None or _is_same(candidate, champion):
        return None
    return champion.speedup if champion.conditions == candidate.figures.conditions else None


def _is_same(candidate: Candidate, champion: Champion) -> bool:
    return champion.version == candidate.version or champion.identity == candidate.identity


def _decision(
    candidate: Candidate, gates: list[Gate], winner: Candidate | None, champion: Champion | None, asks: bool
) -> Decision:
    reigns = champion is not None and champion.version == candidate.version
    waiting = asks and winner is not None and not (champion is not None and champion.version == winner.version)
    if winner is not None and winner.version == candidate.version:
        why = _why_promoted(candidate, champion, reigns)
        return Decision(candidate, gates, not waiting, f"{why}; {WAITS}" if waiting else why, waiting)
    missed = "; ".join(_words(g, candidate, champion) for g in gates if not g.passed)
    if reigns and (winner is None or waiting):
        until = f" until version {winner.version} is approved" if winner is not None else ""
        though = f", though it misses now: {missed}" if missed else ""
        return Decision(candidate, gates, True, f"stays the champion{until}{though}")
    if missed:
        return Decision(candidate, gates, False, f"not promoted: {missed}")
    assert winner is not None  # it passed, so somebody won
    first = f"{winner.drafter} (version {winner.version}) comes first with speedup {winner.figures.speedup}"
    reason = f"passes every gate, but {first} against {candidate.figures.speedup}"
    return Decision(candidate, gates, False, reason)


def _words(gate: Gate, candidate: Candidate, champion: Champion | None) -> str:
    if gate.gate == COMPARED and champion is not None:
        return (
            f"the champion, version {champion.version}, was not measured on these prompts: "
            "`dvc repro -f -s compare`, then `dvc repro -f -s register`"
        )
    return candidate.refused if gate.gate == APPROVAL and candidate.refused else str(gate)


def _why_promoted(candidate: Candidate, champion: Champion | None, reigns: bool) -> str:
    if reigns:
        return "is the champion, and passes every gate"
    if champion is None:
        return "passes every gate; the first champion"
    if champion.identity == candidate.identity:
        return f"passes every gate; the drafter of version {champion.version}, packed in another way"
    if _rival(candidate, champion) is None:
        return f"passes every gate; version {champion.version} is for another base"
    return (
        f"passes every gate; its speedup {candidate.figures.speedup.value:.3f} beats "
        f"{champion.speedup:.3f} of version {champion.version}"
    )


def _short(value: float | bool | None) -> str:
    if value is None:
        return "unknown (one prompt has no interval)"
    return f"{value:.3f}" if isinstance(value, float) else str(value).lower()
