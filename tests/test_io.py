"""A file or folder appears whole or not at all."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from specdec.io import read_jsonl, replacing, replacing_dir, sha256_json, write_json, write_jsonl


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail() -> None:
        with replacing(file) as aside:
            aside.write_text("new")
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_folder_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def fail() -> None:
        with replacing_dir(folder) as aside:
            (aside / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [f.name for f in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]
    with replacing_dir(folder) as aside:
        (aside / "new").touch()
    assert [f.name for f in folder.iterdir()] == ["new"]


def test_json_is_canonical(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})


def test_jsonl_keeps_any_text_on_one_line(tmp_path: Path) -> None:
    rows = [{"x": "line\nbreak\u2028and\u0085more"}, {"x": "🙂"}]
    assert write_jsonl(tmp_path / "a.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "a.jsonl")) == rows
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 2
    assert json.loads((tmp_path / "a.jsonl").read_bytes().split(b"\n")[0]) == rows[0]


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    left = [tmp_path / f".model.{dead}.0a1b2c3d.part", tmp_path / f".model.{os.getpid()}.0a1b2c3d.part"]
    for folder in left:
        folder.mkdir()
        (folder / "weights").touch()
    with replacing_dir(tmp_path / "model") as aside:
        (aside / "weights").touch()
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(["model", left[1].name])
