"""Fetching: what a kill leaves behind, what git is told, and what nobody may read."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from specdec.data import git as module
from specdec.data.git import fetch, without_credentials
from specdec.data.source import clone_file
from specdec.errors import DataError, TransientError
from tests.data.repositories import ROWS, commit, git

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
from specdec.data.git import fetch
print(fetch(sys.argv[1], "main", Path(sys.argv[2]), lambda line: None).commit)
"""


def start(repository: Path, work: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(repository), str(work)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a git whose fetches hang while they are under way."""
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 600\n")
    hook.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[uploadpack]\n\tpackObjectsHook = {hook}\n")
    yield {"GIT_CONFIG_GLOBAL": str(config)}
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("left", ["shallow.lock", "HEAD.lock", "config.lock", "refs/heads/main.lock"])
def test_a_stale_lock_does_not_matter(repository: Path, tmp_path: Path, left: str) -> None:
    work = tmp_path / "work"
    fetch(str(repository), "main", work, print)
    (work / left).touch()
    second = commit(repository, ROWS * 2, "more")
    assert fetch(str(repository), "main", work, print).commit == second
    assert not (work / left).exists()


def test_a_killed_fetch_goes_on(repository: Path, tmp_path: Path, slow: dict[str, str]) -> None:
    work = tmp_path / "work"
    process = start(repository, work, **slow)
    wait_for(work / "shallow.lock")
    wait_for(tmp_path / "pid")
    process.kill()
    process.communicate()
    began = time.monotonic()
    checkout = fetch(str(repository), "main", work, print)
    assert time.monotonic() - began < 10
    assert checkout.read("train.jsonl") == ROWS
    inside = [p.info["name"] for p in psutil.process_iter(["name", "cwd"]) if p.info["cwd"] == str(work)]
    assert not [name for name in inside if name.startswith("git")]


def test_one_commit_comes_and_not_its_history(repository: Path, tmp_path: Path) -> None:
    for times in (2, 3):
        last = commit(repository, ROWS * times, "more")
    for revision in ("main", last):
        checkout = fetch(str(repository), revision, tmp_path / revision, print)
        assert git(checkout.repository, "rev-list", "FETCH_HEAD").split() == [last]
        content = git(checkout.repository, "cat-file", "--batch-all-objects", "--batch-check").splitlines()
        assert sum(" commit " in line for line in content) == 1


def test_a_second_process_waits_for_the_first(repository: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with FileLock(tmp_path / "work.lock"):
        process = start(repository, work)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        assert not (work / "HEAD").exists()
    assert process.communicate(timeout=30)[0].strip() == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("revision", ["--upload-pack=touch hacked", "-v"])
def test_a_revision_is_no_option(repository: Path, tmp_path: Path, revision: str) -> None:
    with pytest.raises(DataError, match="is no revision"):
        fetch(str(repository), revision, tmp_path / "work", print)


def test_a_source_is_no_option(tmp_path: Path) -> None:
    hacked = tmp_path / "hacked"
    with pytest.raises(DataError):
        fetch(f"--upload-pack=touch {hacked};", "main", tmp_path / "work", print)
    assert not hacked.exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:p@ss@host/data", "https://host/data"),
        ("https://token@host/data", "https://host/data"),
        ("fatal: 'http://a:b@x/y' and 'https://c@z'", "fatal: 'http://x/y' and 'https://z'"),
        ("ssh://git:secret@host/data", "ssh://git@host/data"),
        ("ssh://git@host:22/data", "ssh://git@host:22/data"),
        ("git@host:data", "git@host:data"),
        ("https://host/a@b", "https://host/a@b"),
        ("/here/a@b", "/here/a@b"),
    ],
)
def test_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_no_password_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TransientError) as caught:
        fetch("http://me:secret@127.0.0.1:9/data", "main", tmp_path / "work", print)
    assert "http://127.0.0.1:9/data" in str(caught.value)
    assert "secret" not in str(caught.value) + capsys.readouterr().out


def test_no_password_is_recorded(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://me:secret@example.org/data"
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")  # the user's own: this one brings us to the repository here
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{repository}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", url)
    source = clone_file(url, "main", "train.jsonl", tmp_path / "out.jsonl", tmp_path / "work", 0.0, print)
    assert source.url == "https://example.org/data"


def test_the_users_way_in_is_kept_and_other_repositories_are_not(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ("GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_CONFIG_GLOBAL")
    dropped = (
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_NAMESPACE",
        "GIT_COMMON_DIR",
    )
    for name in (*kept, *dropped):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    environment = module._environment()
    assert set(kept) <= set(environment)
    assert not set(dropped) & set(environment)
    checkout = fetch(str(repository), "main", tmp_path / "work", print)
    assert checkout.read("train.jsonl") == ROWS
    checkout.extract("train.jsonl", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == ROWS


def test_a_full_disk_is_no_missing_file(repository: Path, tmp_path: Path) -> None:
    checkout = fetch(str(repository), "main", tmp_path / "work", print)
    with pytest.raises(OSError, match="No space left") as caught:
        checkout.extract("train.jsonl", Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("fatal: unable to access: The requested URL returned error: 429", TransientError),
        ("fatal: unable to access: The requested URL returned error: 503", TransientError),
        ("fatal: unable to access: The requested URL returned error: 403", DataError),
        ("error: unable to write file: No space left on device", OSError),
    ],
)
def test_what_git_said_is_understood(told: str, kind: type[Exception]) -> None:
    assert type(module._explain("https://host/data", "main", told)) is kind


def test_a_long_fetch_is_told(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "while_waiting", functools.partial(module.while_waiting, every=0.001))
    said: list[str] = []
    fetch(str(repository), "main", tmp_path / "work", said.append)
    assert "fetching main (0 s)" in said
