"""The command line: the committed profiles, an answer with a drafter, errors in one line."""

import json
import shutil
from pathlib import Path

import pytest

from specdec.cli.app import main
from specdec.drafters import new_drafter
from specdec.targets import Target
from tests.cli.process import run
from tests.settings import medusa_settings

ROOT = Path(__file__).resolve().parents[2]


def specdec(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    done = run(cwd, *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def test_profiles(project: Path) -> None:
    code, out, _ = specdec(project, "profile", "list")
    assert code == 0
    assert "tinyllama-daring-anteater" in out.split()
    code, out, _ = specdec(project, "profile", "use", "tinyllama-daring-anteater")
    assert code == 0
    assert "TinyLlama/TinyLlama-1.1B-Chat-v1.0" in (project / "params.yaml").read_text()
    assert specdec(project, "check")[0] == 0


def test_errors_are_one_line_and_an_exit_code(project: Path) -> None:
    code, out, err = specdec(project, "profile", "use", "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("specdec: error: no profile 'nothing' in profiles/: choose one of ")
    assert err.count("\n") == 1


def test_generate(target: Target, base_folder: Path, tmp_path: Path) -> None:
    drafter = new_drafter(target, medusa_settings())
    drafter.save_pretrained(tmp_path / "d", {"base": target.identity.as_dict()})
    arguments = ["generate", "hi", "--base", str(base_folder), "--drafter", str(tmp_path / "d")]
    code, chained, err = specdec(tmp_path, *arguments, "--max-new-tokens", "12")
    assert code == 0, err
    assert "12 tokens in " in err
    code, branched, err = specdec(tmp_path, *arguments, "--max-new-tokens", "12", "--tree", "2,3,9")
    assert (code, branched) == (0, chained), err
    assert "acceptance length" in err
    code, _, err = specdec(tmp_path, "generate", "hi", "--base", str(tmp_path))
    assert code == 2
    assert "it is no model" in err
    code, _, err = specdec(tmp_path, "generate", "hi")
    assert code == 2
    assert (
        err
        == "specdec: error: models/base is not there: name a model's folder, or run the pipeline in this one first\n"
    )


def test_evaluate(target: Target, base_folder: Path, tmp_path: Path) -> None:
    drafter = new_drafter(target, medusa_settings())
    drafter.save_pretrained(tmp_path / "d", {"base": target.identity.as_dict()})
    (tmp_path / "p.jsonl").write_text(
        '{"turns": ["hi", "and?"]}\n{"question_id": 7, "category": "x", "turns": ["why"]}\n'
    )
    command = ["evaluate", "--model", str(base_folder), "--drafter", "d", "--prompts", "p.jsonl", "--repeats", "1"]
    options = ["--max-new-tokens", "8", "--tree", "2,2,3", "--draft-length", "1", "--temperature", "1"]
    code, out, err = specdec(tmp_path, *command, *options, "--static-nodes", "3", "--output", "report")
    assert code == 0, err
    for word in (
        "chain of 2 ",
        "chain of 1 ",
        "tree 2,2,3 ",
        "static tree of 3 ",
        "prompt lookup ",
        "temperature 1",
    ):
        assert word in out
    assert "2 prompts; greedy output equal to plain decoding, token for token" in out
    assert (tmp_path / "report/report.html").stat().st_size > 20_000
    for page in ("report.html", "report.md"):
        assert "2 prompts, " in (tmp_path / "report" / page).read_text()
        assert "held-out" not in (tmp_path / "report" / page).read_text(), "whether they are, nobody knows"
    figures = json.loads((tmp_path / "report/ways.json").read_text())
    assert figures["ways"]["chain of 2"]["categories"].keys() == {"p", "x"}
    (tmp_path / "afile").write_text("")
    code, _, err = specdec(tmp_path, *command, "--output", "afile/report")
    assert (code, err) == (
        2,
        "specdec: error: --output afile/report cannot be made there (File exists): name another place\n",
    )
    code, _, err = specdec(tmp_path, *command, "--output", "report")
    assert (code, err) == (2, "specdec: error: --output report is there already: remove it, or name another folder\n")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--prompts", "none.jsonl"], "there is no file of prompts none.jsonl"),
        (["--prompts", "empty.jsonl"], "empty.jsonl is empty"),
        (["--drafter", "nothing"], "nothing"),
        (["--drafter", "base"], "error: base holds no drafter: its specdec.json names no method"),
        (["--tree", "2,2"], "error: --tree '2,2': write DEPTH,WIDTH,NODES, as 5,4,20"),
        (["--temperature", "-1"], "error: --temperature is -1"),
        (["--dtype", "int8"], "--dtype is 'int8': choose one of float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_evaluated(
    target: Target,
    base_folder: Path,
    tmp_path: Path,
    changes: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    drafter = new_drafter(target, medusa_settings())
    drafter.save_pretrained(tmp_path / "d", {"base": target.identity.as_dict()})
    shutil.copytree(base_folder, tmp_path / "base")  # as the stage `fetch_base` leaves it
    (tmp_path / "base/specdec.json").write_text(json.dumps({"identity": target.identity.as_dict()}))
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    command = ["evaluate", "--model", str(base_folder), "--drafter", "d", "--prompts", "p.jsonl"]
    monkeypatch.setattr("sys.argv", ["specdec", *command, *changes])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert (out, line[:16]) == ("", "specdec: error: ")
    assert told in line
