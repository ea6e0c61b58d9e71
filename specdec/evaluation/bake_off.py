"""The drafters of a run side by side: against none, prompt lookup, the best of them and the champion, by prompt.

Each drafter was measured in a process of its own, beside plain decoding. So acceptance is compared directly, and
speed by what each gained over its own plain passes.
"""

from dataclasses import dataclass
from typing import Any

from specdec.errors import DataError
from specdec.evaluation.comparison import compare
from specdec.evaluation.measure import PromptMeasurement
from specdec.evaluation.plan import LOOKUP
from specdec.evaluation.summary import Bootstrap, acceptance_pair, speed_pair


@dataclass(frozen=True)
class Entrant:
    """main: the way that the drafter is reported by. figures: by way. measured: by way; `no drafter` among them."""

    name: str
    main: str
    figures: dict[str, dict[str, Any]]
    measured: dict[str, list[PromptMeasurement]]

    @classmethod
    def parse(cls, name: str, ways: dict[str, Any], rows: list[dict[str, Any]]) -> "Entrant":
        """From `ways.json` and the rows of `prompts.jsonl`. Raises DataError where they are another version's."""
        measured: dict[str, list[PromptMeasurement]] = {}
        try:
            for row in rows:
                found = PromptMeasurement(**{key: value for key, value in row.items() if key != "way"})
                measured.setdefault(row["way"], []).append(found)
            return cls(name, ways["main"], ways["ways"], measured)
        except (KeyError, TypeError) as error:
            raise DataError(f"reports/{name} lacks something ({error}): evaluate the drafter again") from None

    @property
    def prompts(self) -> list[PromptMeasurement]:
        return self.measured[self.main]

    @property
    def speed(self) -> tuple[list[float], list[float]]:
        return speed_pair(self.prompts, self.measured["no drafter"])


def bake_off(entrants: list[Entrant], bootstrap: Bootstrap, champion: str | None = None) -> list[dict[str, Any]]:
    """One row each, the fastest first, and prompt lookup (of the first entrant's run) in its place.

    champion: the name of the entrant that is served now. to_best, to_lookup, to_champion: the comparisons of
    acceptance; speed_to_best, speed_to_champion: of the speedups. Raises DataError when the drafters were measured
    on different prompts.
    """
    ids = [prompt.id for prompt in entrants[0].prompts]
    for other in entrants[1:]:
        if [prompt.id for prompt in other.prompts] != ids:
            raise DataError(
                f"{entrants[0].name} and {other.name} were measured on different prompts: evaluate both again"
            )
    first = entrants[0]
    lookup = Entrant(LOOKUP, LOOKUP, first.figures, first.measured)
    ranked = sorted([*entrants, lookup], key=lambda e: -e.figures[e.main]["speedup"]["value"])
    best = next(entrant for entrant in ranked if entrant is not lookup)
    reigning = next((entrant for entrant in entrants if entrant.name == champion), None)
    rivals = {"best": best, "champion": reigning}
    rows = []
    for entrant in ranked:
        row = {"name": entrant.name, "way": entrant.main, "figures": entrant.figures[entrant.main]}
        for called, rival in rivals.items():
            if rival and entrant is not rival:
                accepted = acceptance_pair(entrant.prompts), acceptance_pair(rival.prompts)
                row[f"to_{called}"] = _compared(*accepted, bootstrap)
                row[f"speed_to_{called}"] = _compared(entrant.speed, rival.speed, bootstrap)
        if entrant is not lookup:
            row["to_lookup"] = _compared(acceptance_pair(entrant.prompts), acceptance_pair(lookup.prompts), bootstrap)
        rows.append(row)
    return rows


def _compared(ours: Any, theirs: Any, bootstrap: Bootstrap) -> dict[str, Any]:
    return compare(ours, theirs, bootstrap.samples, bootstrap.confidence, bootstrap.seed).as_dict()
