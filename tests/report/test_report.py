"""The report: self-contained, complete, and safe with any text."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from specdec.evaluation.measure import PromptMeasurement
from specdec.report import Report, write_comparison, write_prompts_report, write_report
from specdec.report.content import Example, examples
from specdec.report.page import fastest
from specdec.targets import Target

NUMBER = {"value": 1.5, "low": 1.4, "high": 1.6}
GROUP = {
    "acceptance_length": NUMBER,
    "speedup": NUMBER,
    "position_rates": [0.4, 0.1],
    "prompts": 2,
    "tokens": 9,
}


def forecast() -> dict[str, Any]:
    """Of two chains and a tree; for four sequences no drafter pays."""

    def one(name: str, depth: int, tokens: int, size: int, speedup: float) -> dict[str, Any]:
        setting = {"name": name, "depth": depth, "tokens": tokens}
        return {"setting": setting, "batch_size": size, "acceptance_length": 1.5, "speedup": speedup}

    chains = [one(f"chain of {n}", n, n, size, 1 + n / size / 10) for size in (1, 4, 16) for n in (1, 2)]
    none = one("chain of 0", 0, 0, 4, 1.0)
    best = {"1": one("static <tree>", 2, 4, 1, 1.7), "4": none, "16": none}
    both = {"predicted": 1.6, "measured": 1.5, "distance": 0.066}
    return {
        "times": {"context": 123},
        "predicted": [*chains, best["1"]],
        "best": best,
        "best_chain": {"1": chains[1], "4": none, "16": none},
        "measured": {"chain of 2": {"acceptance_length": both, "speedup": both}},
    }


def report() -> Report:
    single = GROUP | {"acceptance_length": {"value": 1.2, "low": None, "high": None}, "prompts": 1}
    figures = GROUP | {
        "conditional_rates": [0.4, 0.25],
        "tokens_per_second": {"plain": 100.0, "drafter": 140.0},
        "time_to_first_token": {"plain": 0.020, "drafter": 0.024},
        "lossless": True,
        "steps": 40,
        "confidence": 0.95,
        "categories": {"<script>": GROUP, "one": single, "$x^{$ a|b": GROUP},
        "files": {},
    }
    shown = Example("c", "<b>why</b>?", [("because ", False), ("<i>so</i>", True)], 1.5)
    way = GROUP | {
        "temperature": 0.0,
        "tokens_per_second": {"plain": 100.0, "drafter": 140.0},
        "time_to_first_token": {"plain": 0.020, "drafter": 0.024},
        "draft_share": 0.25,
    }
    better = {"difference": {"value": 0.25, "low": 0.1, "high": 0.4}, "p_value": 0.001, "verdict": "better"}
    same = {"difference": {"value": 0.01, "low": -0.1, "high": 0.1}, "p_value": 0.7, "verdict": "no difference"}
    alone = {"difference": {"value": 0.3, "low": None, "high": None}, "p_value": None, "verdict": "no difference"}
    ways = {
        "chain of 2": way,
        "<tree>": way | {"to_main": better},
        "prompt lookup": way | {"to_main": same, "temperature": 1.0},
        "static": way | {"to_main": alone},
    }
    all_ways = {"main": "chain of 2", "ways": ways, "notes": ["no <i>trees</i>"], "forecast": forecast()}
    return Report("medusa", figures, {"loss": [(1, 2.0)]}, {"base": "tiny"}, [shown], all_ways)


def test_one_page_that_loads_nothing(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert page.count("data:image/png;base64,") == 5
    cells = " ".join(re.sub(r"<[^>]*>", " ", page.split("What other settings would give on this machine")[1]).split())
    assert "1 chain of 2: 1.20x static &lt;tree&gt;: 1.70x 4 no drafter no drafter 16" in cells
    assert "chain of 2 1.60 (7 % off) 1.50 1.60 (7 % off) 1.50" in cells
    assert "<b>why" not in page
    assert "<script>" not in page
    assert "<mark>&lt;i&gt;so&lt;/i&gt;</mark>" in page
    assert "1.50 [1.40, 1.60]" in page
    assert "1.20 (too few prompts: no interval)" in page
    assert r"| $x^{$ a\|b |" in (tmp_path / "report.md").read_text()
    assert "better by 0.25 (p 0.001)" in page
    assert "no difference shown (-0.10 to +0.10, p 0.7)" in page
    assert "no difference shown (too few prompts)" in page
    assert "No &lt;i&gt;trees&lt;/i&gt;." in page
    assert "<td>&lt;tree&gt;</td>" in page
    for name in ("positions.png", "categories.png", "ways.png", "training.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.1, 1.4, "Faster than plain decoding here: [1.10, 1.40] times its speed."),
        (0.6, 0.9, "Slower than plain decoding here: [0.60, 0.90] times its speed. It does not pay on this machine."),
        (0.9, 1.3, "Neither faster nor slower than plain decoding for certain: [0.90, 1.30] times its speed on "),
        (None, None, "Whether the drafter pays cannot be said: there is no interval of its speedup."),
    ],
)
def test_whether_it_pays_is_said(tmp_path: Path, low: float | None, high: float | None, said: str) -> None:
    made = report()
    made.figures["speedup"] = {"value": 1.0, "low": low, "high": high}
    write_report(made, tmp_path)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert said in text
        assert "The fastest way measured: " in text


def test_where_nothing_was_drafted_nothing_is_shown_to_be_lossless(tmp_path: Path) -> None:
    made = report()
    made.figures["steps"] = 0
    write_report(made, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "nothing drafted</b>" in page
    assert "lossless</b>" not in page
    assert "Whether the drafter pays cannot be said: nothing was drafted." in page


def test_the_fastest_way_may_be_none() -> None:
    def way(value: float, prompts: int = 9, temperature: float = 0.0) -> dict[str, Any]:
        speedup = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"speedup": speedup, "temperature": temperature, "prompts": prompts}

    assert fastest({"a": way(0.9), "b": way(0.8)}) == "no drafter; with drafts a, 0.90 [0.80, 1.00]"
    ways = {"a": way(1.2), "tree": way(1.3, 4), "c": way(1.5, temperature=1.0)}
    assert fastest(ways) == "tree, 1.30 [1.20, 1.40] on 4 prompts"


def with_files() -> Report:
    lookup = {"acceptance_length": {"value": 1.1, "low": 1.0, "high": 1.2}, "speedup": NUMBER}
    fast = {"value": 2.5, "low": 2.4, "high": 2.6}
    group = {"prompts": 7, "tokens": 9, "acceptance_length": NUMBER, "speedup": fast, "prompt_lookup": lookup}
    one = {"<qa>": group | {"prompts": 3}, "a|b": group | {"prompts": 4}}
    files = {
        "bench/<x>.jsonl": group | {"lossless": False, "skipped_prompts": {"<qa>": 12, "rag|": 2}, "categories": one},
        "gsm.jsonl": group | {"lossless": True, "skipped_prompts": {}, "categories": {"gsm": group}},
    }
    made = report()
    return dataclasses.replace(made, figures=made.figures | {"files": files, "lossless": False})


def test_files_of_prompts(tmp_path: Path) -> None:
    write_report(with_files(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<x>" not in page
    assert "<qa>" not in page
    assert "differs from plain decoding: see prompts.jsonl and files.jsonl" in page
    table = page.split("<h2>Evaluation files</h2>")[1].split("<h2>")[0]
    lines = [" ".join(re.sub(r"<[^>]*>", " ", line).split()) for line in table.splitlines()]
    figures = "1.50 [1.40, 1.60] 1.10 [1.00, 1.20] 2.50 [2.40, 2.60] 1.50 [1.40, 1.60]"
    assert (
        lines[lines.index("bench/&lt;x&gt;.jsonl skipped: 12 of &lt;qa&gt;, 2 of rag|") + 1] == f"all 7 {figures} NO"
    )
    assert f"&lt;qa&gt; 3 {figures}" in lines
    assert lines[lines.index("gsm.jsonl") + 1] == f"all 7 {figures} yes"
    assert not [line for line in lines if line.startswith("gsm 7")], "one category is the file"
    rows = re.findall(r"<tr.*?</tr>", table)
    assert {len(re.findall("<t[hd]", row)) for row in rows if "colspan" not in row} == {7}
    told = [line for line in (tmp_path / "report.md").read_text().splitlines() if "2.50" in line]
    ours = "1.50 [1.40, 1.60] | 1.10 [1.00, 1.20] | 2.50 [2.40, 2.60] | 1.50 [1.40, 1.60]"
    assert told == [
        rf"| **bench/<x>.jsonl** (skipped: 12 of <qa>, 2 of rag\|) | 7 | {ours} | NO |",
        f"| <qa> | 3 | {ours} | |",
        rf"| a\|b | 4 | {ours} | |",
        f"| **gsm.jsonl** | 7 | {ours} | yes |",
    ]


def test_without_files_none_are_shown(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    for page in ("report.html", "report.md"):
        assert "valuation file" not in (tmp_path / page).read_text()


def test_a_drafter_trained_elsewhere_has_no_curves(tmp_path: Path) -> None:
    write_report(dataclasses.replace(report(), curves={}), tmp_path)
    for page in ("report.html", "report.md"):
        assert "raining" not in (tmp_path / page).read_text()
    assert not (tmp_path / "training.png").exists()


def test_without_a_forecast_none_is_shown(tmp_path: Path) -> None:
    made = report()
    write_report(dataclasses.replace(made, ways=made.ways | {"forecast": None}), tmp_path)
    assert "expect elsewhere" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "forecast.png").exists()


def test_a_missing_figure_is_an_error_and_not_a_gap(tmp_path: Path) -> None:
    made = report()
    del made.figures["lossless"]
    with pytest.raises(Exception, match="lossless"):
        write_report(made, tmp_path)


def test_examples_mark_what_was_drafted(target: Target) -> None:
    ids = target.tokenizer("héllo")["input_ids"]
    drafted = [False, True, True, False, True, False][: len(ids)]
    prompt = PromptMeasurement("p", "c", 3, ids, drafted, 3, 6, [2, 1], [len(ids) - 1, 1])
    rows = [{"id": "p", "messages": [{"role": "user", "content": "hi"}]}]
    (shown,) = examples([prompt], rows, target.tokenizer, 4)
    assert shown.pieces == [("h", False), ("é", True), ("l", False), ("l", True)], "the first turn's answer"
    assert shown.acceptance_length == 2.0


def test_the_page_of_the_prompts(tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    bins = [
        {"from": a, "to": b} | {s: {"prompts": 1200, "kept": 1100} for s in splits} for a, b in ((1, 9), (10, None))
    ]
    figures = {
        "rows": 3605,
        "bad_rows": {"not JSON": 2},
        "dropped": {"train": {"overlaps the evaluation file <b>.jsonl": 300}, "validation": {}, "test": {}},
        "kept": {"train": 1101, "validation": 1101, "test": 1101},
        "evaluation_files": {"<b>.jsonl": 164},
        "prompt_tokens": {s: {"p50": 3.5, "p90": 7.0, "p99": 8.0, "max": 9.0} for s in splits},
        "max_prompt_tokens": 9,
        "lengths": bins,
    }
    write_prompts_report(figures, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert "<b>.jsonl" not in page
    cells = re.sub(r"<[^>]*>", " ", page.split("What became of every row")[1]).split()
    for line in (
        "kept 1,101 1,101 1,101 3,303",
        "&lt;b&gt;.jsonl 300 – – 300",
        "not JSON 2",
        "10 and more 1,200 1,100",
    ):
        assert line in " ".join(cells)


def test_the_page_of_all_drafters(tmp_path: Path) -> None:
    categories = {"c": GROUP, "<d>": GROUP}
    way = GROUP | {"temperature": 0.0, "lossless": True, "categories": categories}
    worse = {"difference": {"value": -0.25, "low": -0.4, "high": -0.1}, "p_value": 0.002, "verdict": "worse"}
    rows = [
        {"name": "eagle3", "way": "chain of 3", "figures": way, "to_lookup": worse},
        {"name": "<b>", "way": "chain of 2", "figures": way, "to_best": worse, "speed_to_best": worse},
    ]
    none = {"row": None, "told": "no champion <yet>", "sha256": None}
    write_comparison(rows, none, 0.95, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert "<b>" not in page
    cells = " ".join(re.sub(r"<[^>]*>", " ", page.split("side by side</h1>")[1]).split())
    assert "eagle3 chain of 3 1.50 [1.40, 1.60] worse by 0.25 (p 0.002) 1.50 [1.40, 1.60] yes" in cells
    assert "&lt;d&gt; 2 1.50 [1.40, 1.60] 1.50 [1.40, 1.60]" in cells
    assert "Against the champion No champion &lt;yet&gt;. Acceptance length by category" in cells


def test_the_page_with_a_champion(tmp_path: Path) -> None:
    way = GROUP | {"temperature": 0.0, "lossless": True, "categories": {"c": GROUP}}
    worse = {"difference": {"value": -0.25, "low": -0.4, "high": -0.1}, "p_value": 0.002, "verdict": "worse"}
    better = {"difference": {"value": 0.5, "low": 0.4, "high": 0.6}, "p_value": 0.001, "verdict": "better"}
    rows = [
        {"name": "new", "way": "chain of 3", "figures": way, "to_champion": worse, "speed_to_champion": better},
        {"name": "old", "way": "chain of 2", "figures": way},
    ]
    write_comparison(rows, {"row": "old", "told": "version 3 is old", "sha256": "f" * 64}, 0.95, tmp_path)
    page = (tmp_path / "report.html").read_text()
    cells = " ".join(re.sub(r"<[^>]*>", " ", page.split("<h2>Against the champion</h2>")[1]).split())
    assert cells.startswith("Version 3 is old. drafter acceptance length")
    figure = "1.50 [1.40, 1.60]"
    assert f"new {figure} worse by 0.25 (p 0.002) {figure} better by 0.50 (p 0.001)" in cells
    assert f"old {figure} the champion {figure} the champion" in cells
    assert "f" * 64 in cells
