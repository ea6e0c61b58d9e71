"""The report's plots, as PNG with a transparent ground and greys that read on white and on black alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from specdec.report.content import Curve

INK = "#7d8694"
ACCENT = "#2f81f7"
SECOND = "#d9822b"
_STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def plot_positions(figures: dict[str, Any], out: Path) -> None:
    """Bars: share of steps that accepted draft position i, and given that the one before was accepted."""
    rates, conditional = figures["position_rates"], figures["conditional_rates"]
    places = range(1, len(rates) + 1)
    with _figure(out, width=4.6, height=3.0) as axes:
        left = axes.bar([p - 0.2 for p in places], rates, 0.38, color=ACCENT, label="accepted / steps")
        right = axes.bar([p + 0.2 for p in places], conditional, 0.38, color=SECOND, label="given the one before")
        for bars in (left, right):
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9, color=INK)
        axes.set_xticks(list(places))
        axes.set_ylim(0, 1.18)
        axes.set_xlabel("draft position")
        axes.legend(loc="upper right", ncols=2, fontsize=8)


def plot_categories(figures: dict[str, Any], out: Path) -> None:
    """Acceptance length by category (number of prompts) with its interval; the line is over all prompts."""
    found = sorted(figures["categories"].items(), key=lambda item: item[1]["acceptance_length"]["value"])
    with _figure(out, width=4.6, height=0.9 + 0.42 * len(found)) as axes:
        axes.axvline(figures["acceptance_length"]["value"], color=INK, linewidth=1, linestyle=":")
        for place, (_, group) in enumerate(found):
            length = group["acceptance_length"]
            if length["low"] is not None:
                axes.plot([length["low"], length["high"]], [place, place], color=ACCENT, linewidth=2.2, alpha=0.5)
            axes.plot(length["value"], place, "o", color=ACCENT, markersize=6)
        names = [f"{_plain(name)} ({group['prompts']})" for name, group in found]
        axes.set_yticks(range(len(found)), names)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.set_xlabel("tokens a step")


def plot_ways(ways: dict[str, Any], out: Path) -> None:
    """Each way to decode: acceptance length (left) and speedup (right) with their intervals; 1 is no drafter."""
    found = list(ways["ways"].items())[::-1]
    with _figures(out, width=9.4, height=1.0 + 0.34 * len(found), rows=1, columns=2) as both:
        for axes, (key, label) in zip(
            both, [("acceptance_length", "tokens a step"), ("speedup", "times plain decoding")], strict=True
        ):
            axes.axvline(1, color=INK, linewidth=1, linestyle=":")
            for place, (name, figures) in enumerate(found):
                color = ACCENT if name == ways["main"] else SECOND if figures["temperature"] else INK
                figure = figures[key]
                if figure["low"] is not None:
                    axes.plot([figure["low"], figure["high"]], [place, place], color=color, linewidth=2.2, alpha=0.5)
                axes.plot(figure["value"], place, "o", color=color, markersize=6)
            axes.set_ylim(-0.6, len(found) - 0.4)
            axes.set_xlabel(label)
        both[0].set_yticks(range(len(found)), [_plain(name) for name, _ in found])
        both[1].set_yticks(range(len(found)), [])


def plot_forecast(forecast: dict[str, Any], out: Path) -> None:
    """Predicted speedup of chains against their length, a line for each batch size."""
    with _figure(out, width=4.6, height=3.0) as axes:
        axes.axhline(1, color=INK, linewidth=1, linestyle=":")
        for size, color in zip(forecast["best"], (ACCENT, SECOND, INK), strict=True):
            chains = [
                (one["setting"]["tokens"], one["speedup"])
                for one in forecast["predicted"]
                if one["batch_size"] == int(size) and one["setting"]["depth"] == one["setting"]["tokens"]
            ]
            chains = sorted(dict(chains).items())
            label = "1 sequence" if size == "1" else f"{size} sequences"
            axes.plot(*zip(*chains, strict=True), "o-", color=color, markersize=4, label=label)
        axes.set_xticks(sorted({length for length, _ in chains}))
        axes.set_xlabel("draft tokens in a chain")
        axes.set_ylabel("times plain decoding")
        axes.legend(fontsize=8)


def plot_loads(figures: dict[str, Any], out: Path) -> None:
    """Speedup in vLLM against the requests in flight, a line for each draft length, with the intervals."""
    with _figure(out, width=9.4, height=3.0) as axes:
        axes.axhline(1, color=INK, linewidth=1, linestyle=":")
        colors = (ACCENT, SECOND, INK)
        for number, (length, found) in enumerate(figures["draft_lengths"].items()):
            loads = [(int(requests), load["speedup"]) for requests, load in found["loads"].items()]
            color, shift = colors[number % len(colors)], 1 + 0.03 * number  # lines side by side, for their intervals
            places = [requests * shift for requests, _ in loads]
            axes.plot(
                places, [s["value"] for _, s in loads], "o-", color=color, markersize=5, label=f"chain of {length}"
            )
            for place, (_, speedup) in zip(places, loads, strict=True):
                if speedup["low"] is not None:
                    axes.plot(
                        [place, place], [speedup["low"], speedup["high"]], color=color, linewidth=2.2, alpha=0.5
                    )
        axes.set_xscale("log", base=2)
        axes.set_xticks([requests for requests, _ in loads], [f"{requests}" for requests, _ in loads])
        axes.minorticks_off()
        axes.set_xlabel("requests in flight")
        axes.set_ylabel("times vLLM without a drafter")
        axes.legend(fontsize=8)


def plot_curves(curves: dict[str, Curve], out: Path) -> None:
    """Training loss (left axis) and validation acceptance length (right axis) against the step."""
    loss, accepted = curves.get("loss", []), curves.get("validation/acceptance_length", [])
    with _figure(out, width=9.4, height=2.8) as axes:
        axes.plot([s for s, _ in loss], [v for _, v in loss], color=INK, linewidth=1.2)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")
        other = axes.twinx()
        other.plot([s for s, _ in accepted], [v for _, v in accepted], "o-", color=ACCENT, markersize=4)
        other.set_ylabel("validation acceptance length", color=ACCENT)
        other.tick_params(axis="y", colors=ACCENT)


def plot_lengths(figures: dict[str, Any], out: BinaryIO) -> None:
    """Of each split, bars over the prompt's tokens: all prompts (grey), and of them the kept (blue); the limit."""
    rows = figures["lengths"]
    places = range(len(rows))
    limit = next(i for i, row in enumerate(rows) if row["to"] == figures["max_prompt_tokens"]) + 0.5
    labels = [f"> {row['from'] - 1:,}" if row["to"] is None else f"{row['to']:,}" for row in rows]
    with _figures(out, width=9.4, height=5.6, rows=len(figures["kept"])) as all_axes:
        for axes, split in zip(all_axes, figures["kept"], strict=True):
            for key, color in (("prompts", INK), ("kept", ACCENT)):
                alpha = 0.35 if key == "prompts" else 1
                axes.bar(places, [row[split][key] for row in rows], 0.86, color=color, alpha=alpha, label=key)
            axes.axvline(limit, color=SECOND, linewidth=1.4, linestyle="--", label="max_prompt_tokens")
            axes.set_title(f"{split}: {figures['kept'][split]:,} kept", fontsize=10)
            axes.set_xticks(places, labels, fontsize=8)
            axes.margins(x=0.01)
        all_axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8)
        all_axes[-1].set_xlabel("tokens of a prompt, up to and including")


def _plain(text: str) -> str:
    """Text that matplotlib would take for mathematics."""
    return text.replace("$", r"\$")


@contextmanager
def _figure(out: Path, width: float, height: float) -> Iterator[Any]:
    with _figures(out, width, height) as (axes,):
        yield axes


@contextmanager
def _figures(
    out: Path | BinaryIO, width: float, height: float, rows: int = 1, columns: int = 1
) -> Iterator[list[Any]]:
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
        try:
            yield list(grid.flatten())
            figure.tight_layout()
            figure.savefig(out, dpi=160, transparent=True, format="png", metadata={"Software": None})
        finally:
            pyplot.close(figure)
