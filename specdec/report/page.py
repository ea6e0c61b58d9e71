"""Writing the report: PNG plots, `report.html` (self-contained: no script, nothing loaded), `report.md`."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from specdec.io import write_text
from specdec.report.content import Report
from specdec.report.plots import plot_categories, plot_curves, plot_positions

PLOTS = ("positions.png", "categories.png", "training.png")


def write_report(report: Report, folder: Path) -> None:
    """Writes the plots and both pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_positions(report.figures, folder / "positions.png")
    plot_categories(report.figures, folder / "categories.png")
    plot_curves(report.curves, folder / "training.png")
    images = {name: _data_uri(folder / name) for name in PLOTS}
    write_text(folder / "report.html", _render("report.html", report, images))
    write_text(folder / "report.md", _render("report.md", report, {name: name for name in PLOTS}))


def interval(figure: dict[str, float | None]) -> str:
    """`1.83 [1.76, 1.90]`; without ends where one prompt allows none."""
    value = f"{figure['value']:.2f}"
    return f"{value} (one prompt)" if figure["low"] is None else f"{value} {ends(figure)}"


def ends(figure: dict[str, float | None]) -> str:
    """`[1.76, 1.90]`, or why there are none."""
    if figure["low"] is None:
        return "(one prompt: no interval)"
    return f"[{figure['low']:.2f}, {figure['high']:.2f}]"


def _render(template: str, report: Report, images: dict[str, str]) -> str:
    environment = Environment(
        loader=PackageLoader("specdec.report", ""),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(interval=interval, ends=ends)
    values: dict[str, Any] = {"report": report, "figures": report.figures, "images": images}
    return environment.get_template(template).render(values)


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
