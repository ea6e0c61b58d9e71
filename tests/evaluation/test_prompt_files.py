"""Further files of prompts: measured as the held-out ones are, by category; what does not fit is counted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from specdec.drafters import Drafter, new_drafter
from specdec.evaluation import Bootstrap, Plan, evaluate
from specdec.evaluation.prompt_files import evaluate_files
from specdec.evaluation.summary import speed_pair
from specdec.report import Report, write_evaluation
from specdec.targets import Target
from tests.evaluation.test_measure import ROWS, row
from tests.settings import medusa_settings
from tests.tiny import write_base

PLAN = Plan(8, 1, Bootstrap(100, 0.9, 0))
FILES = {
    "bench.jsonl": [
        row("add 2 and 2", "math", further_turns=["and 3"]),
        row("write a poem", "writing"),
        row("9 times 9", "math"),
        row("long " * 99, "writing"),
    ],
    "other.jsonl": [row("def f():", "other")],
}


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return new_drafter(target, medusa_settings())


def test_each_file_by_category(target: Target, drafter: Drafter) -> None:
    found = evaluate(target, drafter, ROWS, PLAN, print, files=FILES)
    bench = found.files["bench.jsonl"]
    assert set(bench.measured) == {"no drafter", "chain of 2", "prompt lookup"}
    for prompts in bench.measured.values():
        assert [p.id for p in prompts] == ["add 2 and 2", "write a poem", "9 times 9"]
    assert len(bench.measured["chain of 2"][0].token_ids) == 16, "two turns of 8 tokens"
    told = found.main_figures(0.9)
    assert told["prompts"] == len(ROWS), "the held-out prompts alone"
    brief = told["files"]["bench.jsonl"]
    assert (brief["prompts"], brief["skipped_prompts"], brief["lossless"]) == (3, {"writing": 1}, True)
    assert {name: group["prompts"] for name, group in brief["categories"].items()} == {"math": 2, "writing": 1}
    main, lookup = bench.figures["chain of 2"], bench.figures["prompt lookup"]
    assert brief["acceptance_length"] == main["acceptance_length"]
    assert brief["prompt_lookup"]["speedup"] == lookup["speedup"]
    math = brief["categories"]["math"]
    assert math["speedup"] == main["categories"]["math"]["speedup"]
    for key in ("acceptance_length", "speedup"):
        assert math["prompt_lookup"][key] == lookup["categories"]["math"][key]
    without, with_it = speed_pair(bench.measured["chain of 2"], bench.measured["no drafter"])
    assert brief["speedup"]["value"] == pytest.approx(sum(without) / sum(with_it))
    assert told["files"]["other.jsonl"]["prompts"] == 1
    assert set(found.all_figures()["files"]["other.jsonl"]) == {"chain of 2", "prompt lookup"}
    json.dumps(told, allow_nan=False)


def test_one_wrong_token_of_one_file_is_not_lossless(target: Target, drafter: Drafter) -> None:
    found = evaluate(target, drafter, ROWS, PLAN, print, files=FILES)
    assert found.lossless
    other = found.files["other.jsonl"]
    for way in ("chain of 2", "prompt lookup"):
        wrong = {**other.figures, way: other.figures[way] | {"lossless": False}}
        files = found.files | {"other.jsonl": dataclasses.replace(other, figures=wrong)}
        told = dataclasses.replace(found, files=files).main_figures(0.9)
        assert told["lossless"] is False
        assert told["files"]["other.jsonl"]["lossless"] is False
        assert told["files"]["bench.jsonl"]["lossless"] is True


def test_a_file_that_does_not_fit_is_told(target: Target, drafter: Drafter) -> None:
    notes: list[str] = []
    files = {"long.jsonl": [row("long " * 99), row("longer " * 99)], **FILES}
    found = evaluate_files(target, drafter, files, PLAN, notes, print)
    assert list(found) == ["bench.jsonl", "other.jsonl"]
    assert notes == ["long.jsonl was not measured: none of its 2 prompts fits tiny-llama"]


def test_what_the_chat_template_refuses_is_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    write_base(folder)
    template = (folder / "chat_template.jinja").read_text()
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuse + template)
    target = Target.from_pretrained(folder, device="cpu")
    brief = {"role": "system", "content": "Be brief."}
    asked = row("add 2")
    rows: list[dict[str, Any]] = [row("why"), {**asked, "messages": [brief, *asked["messages"]]}]
    drafter = new_drafter(target, medusa_settings())
    found = evaluate_files(target, drafter, {"x": rows}, PLAN, [], print)["x"]
    assert found.skipped == {"c": 1}
    assert [p.id for p in found.measured[found.main]] == ["why"]


def test_every_row_is_kept_beside_the_report(target: Target, drafter: Drafter, tmp_path: Path) -> None:
    found = evaluate(target, drafter, ROWS, PLAN, print, files=FILES)
    write_evaluation(Report("d", found.main_figures(0.9), {}, {}, [], found.all_figures()), found, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "files.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 3 + 3 * 1
    assert {(r["file"], r["id"]) for r in rows} == {
        *(("bench.jsonl", r["id"]) for r in FILES["bench.jsonl"][:3]),
        ("other.jsonl", "def f():"),
    }
    held_out = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {r["id"] for r in held_out} == {r["id"] for r in ROWS}
