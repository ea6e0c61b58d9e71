"""Figures that MLflow could not be told, in `.specdec/unsent/<run>.json`, until who opens the run next sends them.

MLflow stores a figure once, however often it is sent: name, time, step and value make it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.errors import DataError
from specdec.io import write_json
from specdec.tracking.lineage import read_json
from specdec.tracking.values import numbers

Figure = tuple[str, float, int, int]  # as mlflow.entities.Metric: name, value, milliseconds since 1970, step


@dataclass(frozen=True)
class Unsent:
    """Of one run."""

    file: Path

    @classmethod
    def of(cls, root: Path, run_id: str) -> "Unsent":
        return cls(root / ".specdec" / "unsent" / f"{run_id}.json")

    def read(self) -> tuple[list[Figure], dict[str, str]]:
        """(figures, tags); a file that is damaged holds none."""
        try:
            found = read_json(self.file)
            waiting = [(str(n), float(v), int(t), int(s)) for n, v, t, s in found.get("figures", [])]
            return waiting, {str(key): str(value) for key, value in found.get("tags", {}).items()}
        except (AttributeError, DataError, TypeError, ValueError):
            return [], {}

    def write(self, waiting: list[Figure], tags: Mapping[str, str]) -> None:
        write_json(self.file, {"figures": waiting, "tags": tags})

    def add(self, values: Mapping[str, Any]) -> None:
        """Nested figures of finished work, for later; those that wait already are not sent twice."""
        waiting, tags = self.read()
        new = figures(numbers(values)[0], 0)
        names = {name for name, *_ in new}
        self.write([figure for figure in waiting if figure[0] not in names] + new, tags)

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)


def figures(finite: Mapping[str, float], step: int) -> list[Figure]:
    """As they are now."""
    now = int(time.time() * 1000)
    return [(name, value, now, step) for name, value in finite.items()]
