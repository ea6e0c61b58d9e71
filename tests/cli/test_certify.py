"""`specdec certify`: the page and the exit code, the file, prompts of either kind, errors in one line."""

import json
from pathlib import Path

import pytest

from specdec.cli.app import main
from specdec.drafters import Sampling
from specdec.evaluation import law
from specdec.io import dump_line
from specdec.targets import Target
from tests.drafters.test_trees import moved

ASKED = {"role": "user", "content": "hi"}


@pytest.fixture
def files(target: Target, tmp_path: Path) -> Path:
    moved(target, "medusa").save_pretrained(tmp_path / "drafter")
    rows = [{"messages": [ASKED]}, {"turns": ["what is it?", "and then?"]}, {"prompt": "long " * 99}]
    (tmp_path / "prompts.jsonl").write_text("".join(map(dump_line, rows)))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code. One rule on the toy vocabulary: the others take their time elsewhere."""
    monkeypatch.setattr(law, "SAMPLINGS", (Sampling(0.7, top_k=1),))
    monkeypatch.setattr("sys.argv", ["specdec", "certify", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_page_the_file_and_the_exit_code(
    files: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [
        "--base",
        str(base_folder),
        "--drafter",
        str(files / "drafter"),
        "--prompts",
        str(files / "prompts.jsonl"),
    ]
    small = ["--max-new-tokens", "16", "--tokens", "240", "--output", str(files / "certificate.json")]
    assert run(monkeypatch, *where, *small) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Losslessness certificate: PASSED\n")
    assert "passed  bfloat16, static tree " in out
    assert "passed: greedy, chain: " in err
    written = json.loads((files / "certificate.json").read_text())
    assert written["passed"] is True
    assert (written["prompts"], written["skipped"], written["deployment"]) == (2, 1, "bfloat16")
    assert run(monkeypatch, *where, *small) == 2
    assert f"--output {files / 'certificate.json'} is there already: remove it, or name" in capsys.readouterr().err
    inside = str(files / "certificate.json" / "c.json")
    assert run(monkeypatch, *where, "--output", inside) == 2
    assert f"--output {inside} cannot be made there (File exists): name another place" in capsys.readouterr().err
    few = ["--max-new-tokens", "4", "--tokens", "8", "--dtype", "float32", "--output", str(files / "few.json")]
    assert run(monkeypatch, *where, *few) == 1
    out, _ = capsys.readouterr()
    assert out.startswith("Losslessness certificate: NOT PASSED\n")
    assert "bfloat16" not in out
    assert json.loads((files / "few.json").read_text())["passed"] is False
    assert run(monkeypatch, *where, "--prompts", "none.jsonl") == 2
    assert "specdec: error: there is no file of prompts none.jsonl" in capsys.readouterr().err
    assert run(monkeypatch, *where, "--dtype", "int8") == 2
    assert "specdec: error: --dtype is 'int8': choose one of float32, bfloat16, float16" in capsys.readouterr().err
