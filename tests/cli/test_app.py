"""The command line: the committed profiles, an answer with a drafter, errors in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.drafters import new_drafter
from specdec.targets import Target
from tests.settings import medusa_settings

ROOT = Path(__file__).resolve().parents[2]


def specdec(cwd: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from specdec.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=None)
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
