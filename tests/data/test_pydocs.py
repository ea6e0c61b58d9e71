import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from specdec.data import pydocs
from specdec.data.pydocs import repository
from specdec.data.pydocs.docstrings import MAX_SUMMARY
from specdec.data.pydocs.harvest import MAX_ROWS
from specdec.data.pydocs.syntax import entries_of_file
from specdec.errors import DataError

Row = dict[str, Any]
FEW: list[Row] = [
    {"system": "", "mask": "User", "dataset": "test", "conversations": [
        {"from": "User", "value": f"q{i}", "label": None}, {"from": "Assistant", "value": "ä", "label": None},
    ]}
    for i in range(3)
]  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(pydocs.conversations())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "conversations", lambda: iter(FEW))


def _digest(rows: list[Row]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_rows_follow_the_schema(rows: list[Row]) -> None:
    for row in rows:
        assert list(row) == ["system", "mask", "dataset", "conversations"]
        assert row["mask"] == "User"
        assert isinstance(row["system"], str)
        said = row["conversations"]
        assert [t["from"] for t in said] == ["User", "Assistant"] * (len(said) // 2)
        assert all(t["value"].strip() == t["value"] != "" and t["label"] is None for t in said)


def test_there_are_enough_of_every_kind(rows: list[Row]) -> None:
    assert 5_000 <= len(rows) <= MAX_ROWS
    categories = Counter(row["dataset"] for row in rows)
    assert {"function reference", "class reference", "signatures", "parameters", "examples", "dialogue",
            "language reference"} <= set(categories)  # fmt: skip
    assert min(categories.values()) >= 50
    turns = Counter(len(row["conversations"]) // 2 for row in rows)
    assert set(turns) == {1, 2, 3}
    assert turns[2] + turns[3] > 500
    assert 0.1 < sum(bool(row["system"]) for row in rows) / len(rows) < 0.4


def test_nothing_is_said_twice(rows: list[Row]) -> None:
    firsts = [row["conversations"][0]["value"] for row in rows]
    assert len(set(firsts)) == len(firsts)
    answers = [row["conversations"][1]["value"] for row in rows]
    assert len(set(answers)) == len(answers)


def test_no_text_names_this_machine(rows: list[Row]) -> None:
    text = "\n".join(t["value"] for row in rows for t in row["conversations"])
    for found in (str(Path.home()) + "/", sys.prefix, "site-packages/", "<|", "object at 0x", "/usr/"):
        assert found not in text


def test_other_process_same_rows_and_no_import_of_what_is_documented(rows: list[Row]) -> None:
    code = (
        "import sys, json, hashlib; from specdec.data import pydocs; rows = list(pydocs.conversations());"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest());"
        "print(*[n for n in pydocs.packages.PACKAGES if n in sys.modules])"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=True)
    digest, imported = done.stdout.split("\n")[:2]
    assert digest == _digest(rows)
    assert imported == ""


NUMPY_STYLE = """Add two numbers.

More about it, see :func:`~operator.add`.

Parameters
----------
a : int
    The first number. Any will do.
b : int, optional
    The second one

Returns
-------
int
    The sum of both.

Examples
--------
>>> add(1, 2)
3
"""
GOOGLE_STYLE = """Add two numbers.

Args:
    a (int): The first number. Any will do.
    b: The second one
        on two lines.

Returns:
    int: The sum of both.
"""
SPHINX_STYLE = """Add two numbers.

:param int a: The first number. Any will do.
:param b: The second one
:returns: The sum of both.
"""


@pytest.mark.parametrize(
    ("text", "second"),
    [
        (NUMPY_STYLE, "The second one."),
        (GOOGLE_STYLE, "The second one on two lines."),
        (SPHINX_STYLE, "The second one."),
    ],
)
def test_parse_reads_three_styles(text: str, second: str) -> None:
    doc = pydocs.parse(text)
    assert doc.summary == "Add two numbers."
    assert [(n, t) for n, _, t in doc.parameters] == [("a", "The first number."), ("b", second)]
    assert doc.parameters[0][1] == "int"
    assert doc.returns.endswith("The sum of both.")


def test_parse_finds_doctests_and_plain_names() -> None:
    assert pydocs.parse(NUMPY_STYLE).examples == [">>> add(1, 2)\n3"]
    assert pydocs.parse("Sum of :func:`~operator.add` and ``mul``.").summary == "Sum of `operator.add` and `mul`."


def test_parse_cuts_at_a_sentence_end() -> None:
    summary = pydocs.parse("One sentence. " + "Another sentence that says more. " * 40).summary
    assert 100 < len(summary) <= MAX_SUMMARY
    assert summary.endswith("more.")


def test_source_gives_signatures_without_self(tmp_path: Path) -> None:
    source = tmp_path / "shapes.py"
    source.write_text(
        'class Box:\n    """A box."""\n'
        '    def grow(self, by: int, *rest, twice=False, **more):\n        """Grow."""\n'
        '    def _hidden(self):\n        """No."""\n'
    )
    (tmp_path / "more.py").write_text('def f(a, /, b=1, *, c=2):\n    """F."""\n')
    assert next(entries_of_file(tmp_path / "more.py", "pkg", "pkg.more")).signature == "f(a, /, b=1, *, c=2)"
    found = {e.name: e for e in entries_of_file(source, "pkg", "pkg.shapes")}
    assert list(found) == ["Box", "Box.grow"]
    assert found["Box.grow"].signature == "grow(by, *rest, twice=False, **more)"
    assert found["Box"].members == ("grow",)


def test_published_repository_is_the_same_everywhere_and_clones(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[commit]\n\tgpgsign = true\n[core]\n\tautocrlf = true\n[user]\n\tname = Me\n")
    first = pydocs.publish(tmp_path / "a")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert pydocs.publish(tmp_path / "deeper" / "b") == first
    monkeypatch.delenv("GIT_DIR")
    subprocess.run(["git", "clone", "--quiet", "a", "copy"], cwd=tmp_path, check=True)
    lines = (tmp_path / "copy" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == FEW
    card = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert "icence" in card
    assert all(f"- {n} {v}" in card for n, v in pydocs.versions().items())
    log = subprocess.run(["git", "log", "--format=%H %D %an"], cwd=tmp_path / "a", capture_output=True, text=True)
    assert log.stdout.strip() == f"{first} HEAD -> main specdec"


def test_publish_leaves_the_same_and_replaces_the_old(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = tmp_path / "repo"
    first = pydocs.publish(repo)
    inode = repo.stat().st_ino
    assert pydocs.publish(repo) == first
    assert repo.stat().st_ino == inode
    monkeypatch.setattr(repository, "fingerprint", lambda: "0" * 64)
    assert pydocs.publish(repo) != first
    assert sorted(os.listdir(tmp_path)) == ["repo", "repo.lock"]


TWICE = """
import json, sys, time
from pathlib import Path
from specdec.data.pydocs import repository

def slowly():
    with open("built", "a") as file:
        file.write("x")
    time.sleep(2)
    return iter(json.loads(sys.argv[1]))

repository.conversations = slowly
print(repository.publish(Path("repo")), Path("repo").stat().st_ino)
"""


def test_of_two_processes_one_waits_and_finds_it_done(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TWICE, json.dumps(FEW)]
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    first, second = (process.communicate(timeout=60)[0] for process in both)
    assert first == second != ""
    assert (tmp_path / "built").read_text() == "x"


def test_publish_interrupted_leaves_what_was_there(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pydocs.publish(tmp_path / "repo")

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "card", stop)
    monkeypatch.setattr(repository, "fingerprint", lambda: "0" * 64)
    for name in ("repo", "new"):
        with pytest.raises(KeyboardInterrupt):
            pydocs.publish(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["new.lock", "repo", "repo.lock"]
    monkeypatch.undo()
    assert pydocs.publish(tmp_path / "repo") == first


def test_every_module_of_the_package_decides_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pydocs.fingerprint()
    package = shutil.copytree(Path(pydocs.__file__).parent, tmp_path / "pydocs")
    monkeypatch.setattr(repository, "__file__", str(package / "repository.py"))
    assert pydocs.fingerprint() == first
    with (package / "topics.py").open("a") as file:
        file.write("# other\n")
    assert pydocs.fingerprint() != first


def test_publish_refuses_a_folder_of_someone_else(few: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="something else"):
        pydocs.publish(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_without_git_one_line_says_so(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="git is not on PATH") as error:
        pydocs.publish(tmp_path / "repo")
    assert "\n" not in str(error.value)
