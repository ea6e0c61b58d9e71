"""A version's tags and its model card: what it is, where it came from, what was measured."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from specdec.tracking.gates import Decision, Figures, Interval
from specdec.tracking.values import name_of, redact, shorten

_LONGEST_TAG = 5000
GATES = "specdec.gate."  # begins the tags of gates


def version_tags(
    drafter: str, provenance: dict[str, Any], figures: Figures, origin: dict[str, str]
) -> dict[str, str]:
    """Tags of a version. provenance: the drafter's `specdec.json`. origin: `specdec.tracking.lineage`."""
    measured = {
        "acceptance_length": figures.acceptance_length,
        "speedup": figures.speedup,
    }
    intervals = {f"specdec.{k}.{end}": repr(getattr(v, end)) for k, v in measured.items() for end in _ENDS}
    tags = {
        **{key: value for key, value in origin.items() if not key.startswith("mlflow.")},
        **intervals,
        "specdec.drafter": drafter,
        "specdec.method": str(provenance.get("method", "unknown")),
        "specdec.data": _text(provenance.get("data")),
        "specdec.warm_start": _text(provenance.get("warm_start")),
        "specdec.lossless": str(figures.lossless).lower(),
        "specdec.certificate": "passed" if figures.certificate else "not passed",
        "specdec.engine": figures.engine.told,
        "specdec.position_rates": json.dumps(list(figures.position_rates)) if figures.position_rates else "",
        "specdec.categories": categories_tag(figures.categories),
        "specdec.conditions": figures.conditions,
        "specdec.checkpoint": "artifacts/drafter",
    }
    return {key: shorten(redact(value), _LONGEST_TAG) for key, value in tags.items() if value}


_ENDS = ("value", "low", "high")


def categories_tag(categories: Mapping[str, Interval]) -> str:
    """{category: [value, low, high]} as JSON; empty where there are none, or more than a tag holds."""
    found = json.dumps({name: [i.value, i.low, i.high] for name, i in sorted(categories.items())})
    return found if categories and len(found) <= _LONGEST_TAG else ""


# What reading a tag raises that somebody else has changed: no JSON, other types, too deep, too large.
_NONSENSE = (ValueError, TypeError, AttributeError, RecursionError, OverflowError)


def figure_of(tag: str | None) -> float | None:
    """A finite number, as `version_tags` wrote it; None for a tag that is missing or that someone has changed."""
    try:
        found = float(tag or "")
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def gate_tag(gate: str) -> str:
    """The tag of a gate's figure. A category may have any name, and MLflow takes few characters: two that are the
    same in those keep different tags."""
    plain = name_of(GATES + gate)
    return plain if plain == GATES + gate else f"{plain[:200]}-{hashlib.sha256(gate.encode()).hexdigest()[:8]}"


def position_rates_of(tag: str | None) -> list[float]:
    """Of the tag `specdec.position_rates`; empty for one that someone else has changed."""
    try:
        found = [float(rate) for rate in json.loads(tag or "[]")]
    except _NONSENSE:
        return []
    return found if all(0 <= rate <= 1 for rate in found) else []


def categories_of(tag: str | None) -> dict[str, Interval]:
    """What `categories_tag` wrote; empty for a tag that someone else has changed."""
    try:
        found = json.loads(tag or "{}").items()
        intervals = {k: Interval.parse(dict(zip(_ENDS, ends, strict=True))) for k, ends in found}
    except _NONSENSE:
        return {}
    return intervals if all(math.isfinite(i.value) for i in intervals.values()) else {}


def model_card(model: str, drafter: str, tags: dict[str, str], figures: Figures, run_id: str) -> str:
    """Markdown for the version's page. run_id: the drafter's run, which holds the report of these figures."""
    base = tags.get("specdec.base.name", "its base")
    lossless = "equal to plain decoding" if figures.lossless else "NOT equal to plain decoding"
    return f"""\
# {drafter}: a speculative-decoding drafter for {base}

Method `{tags["specdec.method"]}`. Measured on held-out prompts, with confidence intervals:

| | |
|---|---|
| acceptance length (tokens per step of the base) | {figures.acceptance_length} |
| speedup over plain decoding | {figures.speedup} |
| greedy output | {lossless} |
| losslessness certificate | {"passed" if figures.certificate else "NOT PASSED"} |
| in the engine | {figures.engine.told} |

Load it: `mlflow.pyfunc.load_model("models:/{model}@champion").predict(["..."])`.
Serve it: `artifacts/drafter` is the checkpoint that vLLM loads.

The report of these figures is in the artifacts of run `{run_id}`, under `report`; a later evaluation replaces it.
`artifacts/evaluation`, inside the model, is the report as it was when this version was registered.
`artifacts/recipe` is what it takes to make it again: `params.yaml`, `dvc.lock`, `lineage.json`, `environment.txt`.

| lineage | |
|---|---|
{_rows(tags)}
"""


def decision_page(model: str, decision: Decision) -> str:
    """Markdown for the report in the drafter's run: what became of the version, by which gates."""
    candidate = decision.candidate
    outcome = "champion" if decision.promoted else "waits for approval" if decision.waits else "not promoted"
    told = [(g.gate, "passed" if g.passed else "MISSED", str(g)) for g in decision.gates]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in told)
    return f"""\
# {candidate.drafter}, version {candidate.version} of {model}: {outcome}

{decision.reason}

| gate | | figure, and what it needs |
|---|---|---|
{rows}
"""


def model_description(base: str) -> str:
    """For the registered model's page."""
    return (
        f"Drafters for speculative decoding with {base}. `champion` is the one to serve, `previous` the one "
        "before it, `challenger` the best one that is not promoted."
    )


def _rows(tags: dict[str, str]) -> str:
    shown = [
        k for k in sorted(tags) if k.startswith(("specdec.git", "specdec.base", "specdec.data", "specdec.warm_start"))
    ]
    return "\n".join(f"| {key.removeprefix('specdec.')} | `{tags[key]}` |" for key in shown)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in sorted(value.items()))
    return "" if value is None else str(value)
