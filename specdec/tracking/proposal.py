"""What a person is shown before a version becomes the champion: the two side by side, from their tags."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from specdec.errors import TrackingError
from specdec.tracking.approval import GATE, WAITS
from specdec.tracking.card import GATES, categories_of, position_rates_of
from specdec.tracking.gates import Interval
from specdec.tracking.promotion import CHALLENGER, CHAMPION, aliases_of
from specdec.tracking.release import open_registry
from specdec.tracking.store import Store, speaking

Tags = Mapping[str, str]


@dataclass(frozen=True)
class Proposal:
    """A version that waits. champion: the one that it is compared with; None: there is none. comparison: Markdown."""

    model: str
    version: str
    champion: str | None
    comparison: str


def waiting(root: Path) -> str | None:
    """The challenger, where it passes every gate and waits for a person. Raises NoRegistry before the first one."""
    store, name = open_registry(root)
    number = aliases_of(store, name).get(CHALLENGER)
    return number if number is not None and _tags(store, name, number).get(GATE) == WAITS else None


def propose(root: Path, number: str | None = None) -> Proposal | None:
    """The waiting version, or the one of that number, beside the champion. None where none waits; raises
    TrackingError where that number is not one that waits."""
    store, name = open_registry(root)
    waits = waiting(root)
    if number is not None and number != waits:
        there = f"version {waits} does" if waits else "none does"
        raise TrackingError(f"version {number} of {name} does not wait for approval: {there}")
    if waits is None:
        return None
    champion = aliases_of(store, name).get(CHAMPION)
    theirs = None if champion is None else _tags(store, name, champion)
    return Proposal(name, waits, champion, comparison(name, waits, _tags(store, name, waits), champion, theirs))


def comparison(model: str, version: str, ours: Tags, champion: str | None, theirs: Tags | None) -> str:
    """Markdown: figures with intervals, gates, prompts. theirs: tags of the champion."""
    sides = [ours] if theirs is None else [ours, theirs]
    heads = [f"version {version}", *([] if theirs is None else [f"version {champion} (champion)"])]
    rows = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    rows += [f"| {label} | {' | '.join(_cell(told(tags)) for tags in sides)} |" for label, told in _FIGURES.items()]
    names = sorted({name for tags in sides for name in categories_of(tags.get("specdec.categories"))})
    rows += [f"| acceptance length, {n} | {' | '.join(_category(tags, n) for tags in sides)} |" for n in names]
    gates = [f"- {k.removeprefix(GATES)}: {v}" for k, v in sorted(ours.items()) if k.startswith(GATES) and k != GATE]
    title = f"# {model}: version {version} beside {'no champion' if champion is None else f'version {champion}'}"
    return "\n".join([title, "", *rows, "", "Gates of the new version:", "", *gates, "", _prompts(ours, theirs), ""])


def _tags(store: Store, name: str, number: str) -> Tags:
    with speaking(store.location):
        return dict(store.client.get_model_version(name, number).tags)


def _interval(name: str) -> Callable[[Tags], str]:
    def told(tags: Tags) -> str:
        ends = {end: tags.get(f"specdec.{name}.{end}") for end in ("value", "low", "high")}
        try:
            return str(Interval.parse({end: None if text == "None" else text for end, text in ends.items()}))
        except (TypeError, ValueError):  # a version of someone else's
            return ""

    return told


def _tag(key: str) -> Callable[[Tags], str]:
    return lambda tags: tags.get(f"specdec.{key}", "")


_FIGURES: dict[str, Callable[[Tags], str]] = {
    "drafter": _tag("drafter"),
    "method": _tag("method"),
    "acceptance length (tokens a step)": _interval("acceptance_length"),
    "speedup (times plain decoding)": _interval("speedup"),
    "accepted by position": lambda tags: " ".join(
        f"{r:.2f}" for r in position_rates_of(tags.get("specdec.position_rates"))
    ),
    "greedy output equal": _tag("lossless"),
    "losslessness certificate": _tag("certificate"),
    "in the engine": _tag("engine"),
    "dataset": lambda tags: " ".join(tags.get(f"specdec.dataset.{k}", "") for k in ("url", "revision")).strip(),
    "commit": _tag("git.commit"),
}


def _category(tags: Tags, name: str) -> str:
    return _cell(str(categories_of(tags.get("specdec.categories")).get(name, "")))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "-"


def _prompts(ours: Tags, theirs: Tags | None) -> str:
    """Whether the figures can be compared at all."""
    mine = ours.get("specdec.conditions", "unknown")
    where = f"the held-out prompts of data/prompts/test.jsonl (prompts, base and settings: {mine[:12]})"
    if theirs is None:
        return f"Measured on {where}."
    if theirs.get("specdec.conditions") == mine:
        return f"Both were measured on {where}."
    other = theirs.get("specdec.conditions", "unknown")
    return f"Measured on {where}; the champion on others ({other[:12]}): their figures cannot be compared."
