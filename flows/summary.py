"""What a run ends with: one row a drafter, and where to look further."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specdec.tracking import locate
from specdec.tracking.lineage import read_json

COLUMNS = ("drafter", "acceptance length", "position rates", "speedup", "lossless", "version")
_MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One drafter's figures as text; `reason`: why it was or was not promoted; `engine`: what a real
    vLLM made of it."""

    drafter: str
    acceptance_length: str
    position_rates: str
    speedup: str
    lossless: str
    version: str
    reason: str
    engine: str

    def cells(self) -> tuple[str, ...]:
        return (
            self.drafter,
            self.acceptance_length,
            self.position_rates,
            self.speedup,
            self.lossless,
            self.version,
        )


def read_rows(root: Path) -> list[Row]:
    """From registry.json and metrics/evaluate/; a drafter that is not registered yet is left out."""
    registry = read_json(root / "registry.json")
    return [_row(root, registry["model"], d, entry) for d, entry in registry.get("versions", {}).items()]


def print_summary(root: Path, console: Console | None = None) -> None:
    """The table, the decisions, and where the report, MLflow and Prefect are."""
    # A log has no width of its own; at a terminal the table fits the window.
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    rows = read_rows(root)
    if rows:
        console.print(_table(rows))
        for row in rows:
            console.print(f"{row.drafter}: {row.reason}", markup=False, highlight=False)
            console.print(f"{row.drafter}: {row.engine}", markup=False, highlight=False)
    for line in _whereabouts(root, rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def artifact_table(root: Path) -> list[dict[str, str]]:
    """The same figures for a Prefect table artifact."""
    names = (*COLUMNS, "decision")
    return [dict(zip(names, (*row.cells(), row.reason), strict=True)) for row in read_rows(root)]


def _row(root: Path, model: str, drafter: str, entry: dict[str, Any]) -> Row:
    metrics = read_json(root / "metrics" / "evaluate" / f"{drafter}.json")
    aliases = ", ".join(entry["aliases"])
    lossless = metrics.get("lossless")
    return Row(
        drafter=drafter,
        acceptance_length=_interval(metrics.get("acceptance_length")),
        position_rates=" ".join(f"{rate:.2f}" for rate in metrics.get("position_rates", [])) or _MISSING,
        speedup=_interval(metrics.get("speedup")),
        lossless=_MISSING if lossless is None else "yes" if lossless else "NO",
        version=f"{model} {entry['version']}" + (f" ({aliases})" if aliases else ""),
        reason=entry["reason"],
        engine=entry["engine"],
    )


def _interval(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return _MISSING
    if figure["low"] is None:  # one prompt alone
        return f"{figure['value']:.2f}"
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _table(rows: list[Row]) -> Table:
    table = Table(title="Drafters (intervals over the held-out prompts)", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.cells())
    return table


def _whereabouts(root: Path, rows: list[Row]) -> Iterator[str]:
    for row in rows:
        report = root / "reports" / row.drafter / "report.html"
        if report.is_file():
            yield f"Report:  {report}"
        if (engine := root / "engine" / row.drafter / "report.html").is_file():
            yield f"In vLLM: {engine}"
    if (comparison := root / "comparison" / "report.html").is_file():
        yield f"All:     {comparison}"
    location = locate(root)
    if location.database is None:
        yield f"MLflow:  {location.shown}"
    else:
        yield f"MLflow:  make mlflow   ({location.shown})"
    yield "Prefect: make prefect"
