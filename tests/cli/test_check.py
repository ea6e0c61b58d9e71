"""`specdec check`: exit codes and lines, for a drafter's folder and for params.yaml."""

import json
from pathlib import Path

import pytest

from specdec.cli.app import main
from specdec.drafters import new_drafter
from specdec.targets import Target
from tests.settings import eagle_settings


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["specdec", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_drafters_folder(
    target: Target,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "d"
    new_drafter(target, eagle_settings()).save_pretrained(folder)
    assert run(monkeypatch, folder, "--base", base_folder) == 0
    assert capsys.readouterr().out == f"{folder} is what vLLM serves for {base_folder}\n"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 9, "hidden_act": "gelu"}))
    assert run(monkeypatch, folder, "--base", base_folder) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f'{folder}/config.json: hidden_act is "gelu", wanted "silu"',
        f"{folder}/config.json: vocab_size is 9, wanted 262 as tiny-llama's",
    ]
    assert err == ""


def test_a_base_of_which_config_json_alone_is_there(
    target: Target,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new_drafter(target, eagle_settings()).save_pretrained(tmp_path / "d")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_bytes((base_folder / "config.json").read_bytes())
    assert run(monkeypatch, tmp_path / "d", "--base", tmp_path / "base") == 0
    assert "whether it was trained on these was not compared" in capsys.readouterr().out


def test_folders_that_are_none(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "none", "--base", base_folder) == 2
    assert capsys.readouterr().err == f"specdec: error: {tmp_path / 'none'} is no folder with a drafter\n"
    assert run(monkeypatch, tmp_path, "--base", tmp_path / "none") == 2
    assert "none is no base: config.json is missing" in capsys.readouterr().err


def test_a_base_without_a_drafter_is_no_question(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--base", base_folder) == 2
    told = "specdec: error: --base: name the drafter's folder that is to be checked against it\n"
    assert capsys.readouterr().err == told
