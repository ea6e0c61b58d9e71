"""The stage on a tiny project: what becomes of every row, what a kill leaves, and what a user reads when it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.data.conversations import RowCount, read_conversations
from specdec.data.prompts import SPLITS, make_prompt, prompt_ids, split_of
from specdec.errors import DataError
from specdec.io import dump_line, read_jsonl, sha256_file, write_jsonl
from specdec.targets import load_tokenizer
from stages import prepare_prompts
from tests.tiny import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def project(tmp_path: Path, base_folder: Path) -> Path:
    """A base whose template refuses system turns, and 40 conversations, every fourth with one."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    change(tmp_path, validation_share=0.3, test_share=0.3)
    base = shutil.copytree(base_folder, tmp_path / "models" / "base")
    (base / "chat_template.jinja").write_text(REFUSING + TEMPLATE)
    write_rows(tmp_path, [conversation(i, "Be short." if i % 4 == 0 else "") for i in range(40)])
    return tmp_path


def change(project: Path, **settings: Any) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["prepare_prompts"] |= settings
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def conversation(number: int, system: str) -> dict[str, Any]:
    turns = [{"from": "User", "value": f"Question {number}"}, {"from": "Assistant", "value": "old"}]
    return {"system": system, "dataset": "c", "conversations": turns}


def write_rows(project: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(project / "data" / "raw" / "train.jsonl", rows)


@pytest.fixture
def prepare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Runs the stage in this process; gives its metrics."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def call() -> dict[str, Any]:
        prepare_prompts.main()
        metrics: dict[str, Any] = json.loads((project / "metrics/prompts.json").read_text())
        return metrics

    return call


Prepare = Callable[[], dict[str, Any]]


def outputs(project: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in [*(project / "data/prompts").iterdir(), project / "metrics/prompts.json"]}


def command(project: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.prepare_prompts"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_row_is_accounted_for(project: Path, prepare: Prepare) -> None:
    with (project / "data/raw/train.jsonl").open("a") as file:
        file.write("{\n" + json.dumps(conversation(1, "")) + "\n")
    metrics = prepare()
    assert metrics["rows"] == 42
    assert metrics["bad_rows"] == {"not JSON": 1}
    assert sum(d.get("refused by the chat template", 0) for d in metrics["dropped"].values()) == 10
    assert sum(d.get("duplicate", 0) for d in metrics["dropped"].values()) == 1
    assert sum(metrics["kept"].values()) == 30
    for split, kept in metrics["kept"].items():
        rows = list(read_jsonl(project / f"data/prompts/{split}.jsonl"))
        assert len(rows) == kept > 0
        assert all([m["role"] for m in row["messages"]] == ["user"] for row in rows)
        assert sum(row[split]["kept"] for row in metrics["lengths"]) == kept
        assert metrics["categories"][split] == {"c": kept}
    assert not list((project / ".specdec").iterdir())


def test_where_no_rule_applies_the_files_are_the_plain_ones(project: Path, prepare: Prepare) -> None:
    """By id, cut at the limit, one compact line each."""
    (project / "models/base/chat_template.jinja").write_text(TEMPLATE)
    change(project, max_train=5, max_validation=4, max_prompt_tokens=20)
    metrics = prepare()
    tokenizer = load_tokenizer(project / "models/base")
    prompts = [make_prompt(c, 3) for c in read_conversations(project / "data/raw/train.jsonl", RowCount())]
    short = sorted((p for p in prompts if len(prompt_ids(tokenizer, p.messages)) <= 20), key=lambda p: p.id)
    assert len(short) > 0
    for split, limit in zip(SPLITS, (5, 4, None), strict=True):
        rows = [p.as_row() for p in short if split_of(p, 0.3, 0.3) == split][:limit]
        assert (project / f"data/prompts/{split}.jsonl").read_text() == "".join(map(dump_line, rows))
        assert metrics["kept"][split] == len(rows) > 0
    assert any("max_prompt_tokens" in reason for d in metrics["dropped"].values() for reason in d)


def test_evaluation_files_are_not_trained_on(project: Path, prepare: Prepare) -> None:
    bench = project / "bench.jsonl"
    write_jsonl(bench, [{"question": f"question {i}!"} for i in range(1, 40, 2)])
    change(project, evaluation_files=[{"path": "bench.jsonl", "sha256": sha256_file(bench)}])
    metrics = prepare()
    assert metrics["evaluation_files"] == {"bench.jsonl": 20}
    for split in ("train", "validation"):
        numbers = [
            int(row["messages"][0]["content"].split()[1]) for row in read_jsonl(Path(f"data/prompts/{split}.jsonl"))
        ]
        assert numbers
        assert all(number % 2 == 0 for number in numbers)
        assert metrics["dropped"][split]["overlaps the evaluation file bench.jsonl"] > 0
    assert "overlaps the evaluation file bench.jsonl" not in metrics["dropped"]["test"]
    write_jsonl(bench, [])
    with pytest.raises(DataError, match=r"bench\.jsonl has sha256 "):
        prepare()


def test_further_prompts_stand_beside_the_dataset(project: Path, prepare: Prepare) -> None:
    """In every split, under their file's name; one that the dataset has too is dropped."""
    latest = project / "latest.jsonl"
    asked = [{"category": "help", "prompt": f"What of {i}?"} for i in range(30)]
    write_jsonl(latest, [*asked, {"prompt": "Question 1"}])
    change(project, further_prompts=[{"path": str(latest), "sha256": sha256_file(latest)}])
    metrics = prepare()
    assert metrics["rows"] == 71
    assert sum(d.get("duplicate", 0) for d in metrics["dropped"].values()) == 1
    kept = [metrics["categories"][split]["latest: help"] for split in SPLITS]
    assert sum(kept) == 30
    assert all(kept)
    latest.write_text("{}")
    with pytest.raises(DataError, match=r"prepare_prompts.further_prompts: .* is stated"):
        prepare()


def test_the_page_says_what_the_metrics_say(project: Path, prepare: Prepare) -> None:
    metrics = prepare()
    page = (project / "data/prompts/report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert "refused by the chat template" in page
    for kept in metrics["kept"].values():
        assert f"<b>{kept}</b>" in page


def test_a_killed_run_leaves_nothing_half(project: Path, prepare: Prepare) -> None:
    write_rows(project, [conversation(i, "") for i in range(4000)])
    change(project, max_train=None, max_validation=None, max_test=None)
    process = command(project)
    while process.poll() is None and not list((project / ".specdec").glob("prompts/*.arrow")):
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (project / "data/prompts").exists()
    assert (project / ".specdec/prompts").exists()
    prepare()
    first = outputs(project)
    assert not list((project / ".specdec").iterdir())
    prepare()
    assert outputs(project) == first


def test_a_template_that_refuses_everything_is_named(project: Path) -> None:
    write_rows(project, [conversation(i, "Be short.") for i in range(40)])
    process = command(project)
    _, told = process.communicate(timeout=90)
    assert process.returncode == 2
    assert told.count("\n") == 1
    assert "no prompt is left for the train split: 40 rows, dropped " in told
    assert "'refused by the chat template': " in told
    assert not (project / "data/prompts").exists()
    assert not list((project / ".specdec").iterdir())


def test_it_loads_nothing_that_measures_drafters() -> None:
    script = (
        "import sys, stages.prepare_prompts\n"
        "print(*(n for n in ('drafters', 'decoding', 'evaluation', 'training') if f'specdec.{n}' in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment, text=True).strip() == ""


def test_a_page_concerns_its_own_stage() -> None:
    """An edit of the prompts' page evaluates no drafter again; and no file of the reports is forgotten."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    folder = ROOT / "specdec" / "report"
    deps = {
        "evaluate": stages["evaluate"]["do"]["deps"],
        "prompts": stages["prepare_prompts"]["deps"],
        "benchmark": stages["benchmark"]["do"]["deps"],
        "compare": stages["compare"]["deps"],
    }
    found = {name: {Path(d).name for d in listed if d.startswith("specdec/report")} for name, listed in deps.items()}
    pages = {"page.html", "page.py", "plots.py"}
    assert found["prompts"] == pages | {"prompts.html"}
    assert found["evaluate"] == pages | {"content.py", "report.html", "report.md"}
    assert found["benchmark"] == pages | {"engine.html"}
    assert found["compare"] == pages | {"comparison.html"}
    assert set.union(*found.values()) == {p.name for p in folder.glob("*.*")} - {"__init__.py"}


def test_missing_conversations_are_named(project: Path, prepare: Prepare) -> None:
    (project / "data/raw/train.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no data/raw/train\.jsonl: run the stage `clone_data` first"):
        prepare()
