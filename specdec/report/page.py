"""Writing the reports: PNG plots, HTML pages (self-contained: no script, nothing loaded), `report.md`."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from specdec.io import write_text
from specdec.report.content import Report
from specdec.report.plots import plot_categories, plot_curves, plot_lengths, plot_positions

PLOTS = ("positions.png", "categories.png", "training.png")


def write_report(report: Report, folder: Path) -> None:
    """Writes the plots and both pages of a drafter into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_positions(report.figures, folder / "positions.png")
    plot_categories(report.figures, folder / "categories.png")
    plot_curves(report.curves, folder / "training.png")
    images = {name: _data_uri((folder / name).read_bytes()) for name in PLOTS}
    values = {"report": report, "figures": report.figures}
    write_text(folder / "report.html", _render("report.html", **values, images=images))
    write_text(folder / "report.md", _render("report.md", **values, images={name: name for name in PLOTS}))


def write_prompts_report(figures: dict[str, Any], out: Path) -> None:
    """Writes the page of the prompts. figures: `metrics/prompts.json`."""
    image = io.BytesIO()
    plot_lengths(figures, image)
    reasons = sorted({reason for dropped in figures["dropped"].values() for reason in dropped})
    rows = [(reason, [dropped.get(reason, 0) for dropped in figures["dropped"].values()]) for reason in reasons]
    write_text(out, _render("prompts.html", figures=figures, dropped=rows, image=_data_uri(image.getvalue())))


def interval(figure: dict[str, float | None]) -> str:
    """`1.83 [1.76, 1.90]`; without ends where one prompt allows none."""
    value = f"{figure['value']:.2f}"
    return f"{value} (one prompt)" if figure["low"] is None else f"{value} {ends(figure)}"


def ends(figure: dict[str, float | None]) -> str:
    """`[1.76, 1.90]`, or why there are none."""
    if figure["low"] is None:
        return "(one prompt: no interval)"
    return f"[{figure['low']:.2f}, {figure['high']:.2f}]"


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("specdec.report", ""),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(interval=interval, ends=ends)
    return environment.get_template(template).render(values)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
