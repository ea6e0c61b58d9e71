"""Writing the reports: PNG plots, HTML pages (self-contained: no script, nothing loaded), `report.md`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from specdec.io import write_json, write_jsonl, write_text
from specdec.report.content import Report
from specdec.report.plots import (
    plot_categories,
    plot_curves,
    plot_forecast,
    plot_lengths,
    plot_loads,
    plot_positions,
    plot_ways,
)

if TYPE_CHECKING:  # it brings torch, which no page needs
    from specdec.evaluation import Evaluation


def write_evaluation(report: Report, evaluation: Evaluation, folder: Path) -> None:
    """Everything that an evaluation leaves behind: the pages, `figures.json`, `ways.json`, `prompts.jsonl`, and
    `files.jsonl` where files of prompts were measured."""
    write_report(report, folder)
    if report.certificate:
        write_text(folder / "certificate.txt", report.certificate)
    write_json(folder / "figures.json", report.figures)
    write_json(folder / "ways.json", report.ways)
    measured = evaluation.measured | evaluation.others
    rows = ({"way": way} | asdict(p) for way, prompts in measured.items() for p in prompts)
    write_jsonl(folder / "prompts.jsonl", rows)
    if evaluation.files:
        write_jsonl(folder / "files.jsonl", _rows_of_files(evaluation))


def _rows_of_files(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for name, file in evaluation.files.items():
        for way, prompts in file.measured.items():
            yield from ({"file": name, "way": way} | asdict(p) for p in prompts)


def write_report(report: Report, folder: Path) -> None:
    """Writes the plots and both pages of a drafter into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_positions(report.figures, folder / "positions.png")
    plot_categories(report.figures, folder / "categories.png")
    plot_ways(report.ways, folder / "ways.png")
    names = ["positions.png", "categories.png", "ways.png"]
    if report.ways["forecast"]:
        plot_forecast(report.ways["forecast"], folder / "forecast.png")
        names.append("forecast.png")
    if report.curves:  # a drafter that was trained elsewhere has none
        plot_curves(report.curves, folder / "training.png")
        names.append("training.png")
    images = {name: _data_uri((folder / name).read_bytes()) for name in names}
    values = {"report": report, "figures": report.figures}
    write_text(folder / "report.html", _render("report.html", **values, images=images))
    write_text(folder / "report.md", _render("report.md", **values, images={name: name for name in names}))


def write_prompts_report(figures: dict[str, Any], out: Path) -> None:
    """Writes the page of the prompts. figures: `metrics/prompts.json`."""
    image = io.BytesIO()
    plot_lengths(figures, image)
    reasons = sorted({reason for dropped in figures["dropped"].values() for reason in dropped})
    rows = [(reason, [dropped.get(reason, 0) for dropped in figures["dropped"].values()]) for reason in reasons]
    write_text(out, _render("prompts.html", figures=figures, dropped=rows, image=_data_uri(image.getvalue())))


def write_comparison(rows: list[dict[str, Any]], champion: dict[str, Any], confidence: float, folder: Path) -> None:
    """Writes the page of all drafters of a run. rows: `bake_off`. champion: as in `comparison.json`."""
    shown = {row["name"]: row["figures"] for row in rows}
    plot_ways({"main": rows[0]["name"], "ways": shown}, folder / "comparison.png")
    image = _data_uri((folder / "comparison.png").read_bytes())
    values = {"rows": rows, "champion": champion, "confidence": confidence, "image": image}
    write_text(folder / "report.html", _render("comparison.html", **values))


def write_engine(name: str, figures: dict[str, Any], confidence: float, folder: Path) -> None:
    """Writes the page of a drafter inside vLLM. figures: `metrics/engine/D.json`."""
    plot_loads(figures, folder / "loads.png")
    image = _data_uri((folder / "loads.png").read_bytes())
    write_text(
        folder / "report.html", _render("engine.html", name=name, figures=figures, confidence=confidence, image=image)
    )


def interval(figure: dict[str, float | None]) -> str:
    """`1.83 [1.76, 1.90]`; without ends where there are none."""
    return f"{figure['value']:.2f} {ends(figure)}"


def ends(figure: dict[str, float | None]) -> str:
    """`[1.76, 1.90]`, or that there are none: with one prompt, or where one alone made a step, or none did."""
    if figure["low"] is None:
        return "(too few prompts: no interval)"
    return f"[{figure['low']:.2f}, {figure['high']:.2f}]"


def cell(text: str) -> str:
    """Text within a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def setting(predicted: dict[str, Any]) -> str:
    """`chain of 5: 1.42x`, or `no drafter`."""
    if not predicted["setting"]["tokens"]:
        return "no drafter"
    return f"{predicted['setting']['name']}: {predicted['speedup']:.2f}x"


def verdict(comparison: dict[str, Any]) -> str:
    """`better by 0.31 (p 0.001)`, or `no difference shown (-0.10 to +0.08, p 0.41)`: what is still possible."""
    chance = "too few prompts" if comparison["p_value"] is None else f"p {comparison['p_value']:.2g}"
    difference = comparison["difference"]
    if comparison["verdict"] != "no difference":
        return f"{comparison['verdict']} by {abs(difference['value']):.2f} ({chance})"
    if difference["low"] is None:
        return f"no difference shown ({chance})"
    return f"no difference shown ({difference['low']:+.2f} to {difference['high']:+.2f}, {chance})"


def worth(figures: dict[str, Any]) -> tuple[str, str]:
    """(`good`, `bad` or `open`, a sentence): whether the drafter is faster than none, by the speedup's interval."""
    speedup = figures["speedup"]
    if not figures["steps"]:
        return "open", "Whether the drafter pays cannot be said: nothing was drafted."
    if speedup["low"] is None:
        return "open", "Whether the drafter pays cannot be said: there is no interval of its speedup."
    interval = f"{ends(speedup)} times its speed"
    if speedup["low"] > 1:
        return "good", f"Faster than plain decoding here: {interval}."
    if speedup["high"] < 1:
        return "bad", f"Slower than plain decoding here: {interval}. It does not pay on this machine."
    return (
        "open",
        f"Neither faster nor slower than plain decoding for certain: {interval} on {figures['prompts']} prompts.",
    )


def fastest(ways: dict[str, dict[str, Any]]) -> str:
    """The greedy way that was measured to be the fastest: `static tree of 12, 1.31 [1.20, 1.42] on 16 prompts`."""
    greedy = {name: way for name, way in ways.items() if not way["temperature"]}
    name = max(greedy, key=lambda way: greedy[way]["speedup"]["value"])
    speedup = greedy[name]["speedup"]
    if speedup["value"] <= 1:
        return f"no drafter; with drafts {name}, {interval(speedup)}"
    return f"{name}, {interval(speedup)} on {greedy[name]['prompts']} prompts"


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("specdec.report", ""),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        interval=interval, ends=ends, verdict=verdict, setting=setting, cell=cell, worth=worth, fastest=fastest
    )
    return environment.get_template(template).render(values)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
