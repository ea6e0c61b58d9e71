"""The stage, end to end, with the real `transformers serve` and a tiny random base."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from specdec.io import read_jsonl, write_json, write_jsonl
from tests.settings import sampling

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"weights": "a" * 64, "tokenizer": "b" * 64, "chat_template": "c" * 64}
SYNTHESIZE = {
    "engine": "transformers",
    "engine_args": [],
    "dtype": "float32",
    "max_model_len": 200,
    "sampling": sampling(max_tokens=12).model_dump(),
    "max_failed_share": 0.0,
}


@pytest.fixture(scope="module")
def base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(base_folder, folder)
    write_json(folder / "specdec.json", {"identity": IDENTITY})
    return folder


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Path:
    """A folder with what the stage reads."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["synthesize"] = SYNTHESIZE
    params["prepare_prompts"]["max_prompt_tokens"] = 100
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(base)
    for split, numbers in {"train": range(8), "validation": range(8, 10)}.items():
        write_jsonl(tmp_path / "data" / "prompts" / f"{split}.jsonl", map(prompt, numbers))
    return tmp_path


def prompt(number: int) -> dict[str, Any]:
    content = [
        ("system", "Be short."),
        ("user", f"Question {number}"),
        ("assistant", "old"),
        ("user", "More?"),
    ]
    return {
        "id": f"{number:064d}",
        "category": "c",
        "messages": [{"role": r, "content": c} for r, c in content],
    }


def run(project: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SPECDEC_")}
    return subprocess.run(
        [sys.executable, "-m", "stages.synthesize"],
        cwd=project,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_from_prompts_to_data_and_again_without_a_server(project: Path) -> None:
    first = run(project)
    assert first.returncode == 0, first.stdout + first.stderr
    data = {s: list(read_jsonl(project / f"data/synthetic/{s}.jsonl")) for s in ("train", "validation")}
    assert [r["id"] for r in data["train"]] == [prompt(i)["id"] for i in range(8)]
    assert [r["id"] for r in data["validation"]] == [prompt(i)["id"] for i in range(8, 10)]
    for row in data["train"]:
        assert (row["base"], row["token_ids_from"]) == (IDENTITY, "server")
        assert row["messages"][0] == {"role": "system", "content": "Be short."}
        assert "old" not in [m["content"] for m in row["messages"]]
    metrics = json.loads((project / "metrics/synthesis.json").read_text())
    assert metrics["data"]["train"]["rows"] == 8
    assert metrics["last_run"]["rows_answered"] == 10
    assert metrics["last_run"]["prompts_rendered_differently"] == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(project) in " ".join(p.info["cmdline"] or [])]

    written = {f: f.read_bytes() for f in (project / "data/synthetic").iterdir()}
    again = run(project, SPECDEC_SERVER_URLS="http://127.0.0.1:9")  # where nothing listens
    assert again.returncode == 0, again.stderr
    assert "10 of them answered before" in again.stdout
    assert {f: f.read_bytes() for f in written} == written
    assert json.loads((project / "metrics/synthesis.json").read_text())["data"] == metrics["data"]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("models/base", "run the stage `fetch_base` first"),
        ("data/prompts/train.jsonl", "`prepare_prompts` first"),
    ],
)
def test_what_is_missing_is_named(project: Path, missing: str, says: str) -> None:
    (project / missing).unlink()
    failed = run(project)
    assert failed.returncode == 2
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr


def test_no_server_at_the_url_can_be_tried_again(project: Path) -> None:
    failed = run(project, SPECDEC_SERVER_URLS="http://127.0.0.1:9")
    assert failed.returncode == 75
    assert failed.stderr.count("\n") == 1
    assert "no server answers at http://127.0.0.1:9" in failed.stderr


@pytest.mark.soak
def test_a_split_without_an_answer_is_no_success(project: Path) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["synthesize"]["sampling"] |= {"cut_off": "drop", "max_tokens": 1}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    failed = run(project)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "has an answer: look at synthesize.sampling (cut_off, max_tokens)" in failed.stderr
    assert not (project / "metrics/synthesis.json").exists()
