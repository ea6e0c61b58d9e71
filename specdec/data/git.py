"""Cloning a dataset's repository at a pinned revision, without a working tree of everything else.

Only the wanted revision is fetched (shallow), into a bare repository in a work folder; fetching again continues
there. Git LFS content is fetched by `specdec.data.lfs`, so the `git-lfs` program is not needed.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import psutil
from filelock import FileLock

from specdec.errors import DataError, TransientError
from specdec.progress import while_waiting

_NO_SUCH_REVISION = ("couldn't find remote ref", "not our ref", "unadvertised object", "invalid refspec")
_MAY_PASS = (
    "could not resolve host",
    "connect",
    "timed out",
    "early eof",
    "unexpected disconnect",
    "rpc failed",
    "returned error: 429",
    "returned error: 5",
)
# What would point git at another repository than the one it runs in, or change what it says.
_NOT_OURS = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CURL_VERBOSE",
    "GIT_DEFAULT_HASH",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_TRACE",
    "GIT_WORK_TREE",
)


@dataclass(frozen=True)
class Checkout:
    """A bare repository that holds `commit`."""

    repository: Path
    commit: str

    def read(self, file: str) -> bytes | None:
        """A small file's bytes at the commit; None when there is no such file."""
        with self._open(file) as process:
            content = _output(process).read()
        return content if process.returncode == 0 else None

    def extract(self, file: str, out: Path) -> None:
        """Writes a file of any size at the commit to `out`. Raises DataError when there is no such file.

        We write and not git, so that a full disk is the OSError it is.
        """
        with self._open(file) as process, out.open("wb") as sink:
            shutil.copyfileobj(_output(process), sink, 1 << 20)
        if process.returncode != 0:
            raise DataError(f"the repository has no file {file!r} at {self.commit[:12]}: it has {self._files()}")

    def _open(self, file: str) -> subprocess.Popen[bytes]:
        command = _command(["cat-file", "blob", f"{self.commit}:{file}"])
        return subprocess.Popen(
            command, cwd=self.repository, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def _files(self) -> str:
        names = _git(["ls-tree", "--name-only", self.commit], self.repository).split()
        return ", ".join(names[:20])


def fetch(url: str, revision: str, work: Path, say: Callable[[str], None]) -> Checkout:
    """Fetches one revision (full commit hash, tag or branch) of `url` into the bare repository `work`.

    One process at a time: another one waits. What a killed one left behind is cleared first.
    Raises DataError when the repository or the revision does not exist, TransientError when the network fails.
    """
    if shutil.which("git") is None:
        raise DataError("the command `git` was not found: install git")
    if revision.startswith("-"):
        raise DataError(f"{revision!r} is no revision: give a branch, a tag or a commit hash in clone_data.revision")
    work.mkdir(parents=True, exist_ok=True)
    say(f"fetching {revision} of {without_credentials(url)}")
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    with while_waiting(say, f"fetching {revision}"), lock:
        _clear_after_a_kill(work)
        return _fetch(url, revision, work)


def local_path(url: str) -> Path:
    """Where a path, or a `file://` URL as `Path.as_uri` writes it, is on this machine, if it is there at all."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")  # not by urlsplit: a bare ? or # belongs to the path, as for git
    if scheme.lower() == "file" and host.lower() in ("", "localhost"):
        return Path("/" + unquote(path, errors="surrogateescape"))
    return Path(url).expanduser()


def without_credentials(url: str) -> str:
    """The URL (or a text with URLs) without the names and passwords in it; ssh keeps the name, which is no secret."""
    text = re.sub(r"(https?://)[^/?#\s'\"]*@", r"\1", url)
    return re.sub(r"(\w://[^/?#\s'\"@:]*):[^/?#\s'\"]*@", r"\1@", text)


def _clear_after_a_kill(work: Path) -> None:
    """Under our lock nobody of ours fetches, so git processes and lock files here are what a kill left behind."""
    orphans = [p for p in psutil.process_iter(["name", "cwd"]) if _is_git_in(p, work)]
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=5)
    for left in [*work.glob("*.lock"), *(work / "refs").rglob("*.lock")]:
        left.unlink(missing_ok=True)


def _is_git_in(process: psutil.Process, work: Path) -> bool:
    name, cwd = process.info["name"] or "", process.info["cwd"]
    return name.startswith("git") and cwd == str(work.resolve())


def _fetch(url: str, revision: str, work: Path) -> Checkout:
    _git(["init", "--quiet", "--bare"], work)  # leaves what is there, completes what a kill left of it
    local = local_path(url)
    source = str(local.resolve()) if local.exists() else url
    command = ["fetch", "--depth", "1", "--no-tags", "--force", "--end-of-options", source, revision]
    result = _run(command, work)
    if result.returncode != 0:
        raise _explain(without_credentials(url), revision, without_credentials(result.stderr))
    return Checkout(work, _git(["rev-parse", "FETCH_HEAD^{commit}"], work).strip())


def _explain(url: str, revision: str, stderr: str) -> Exception:
    """What went wrong, from what git said: DataError, TransientError, or the OSError of a full disk."""
    last = [line for line in stderr.strip().splitlines() if line.strip()][-1:] or ["git said nothing"]
    if "No space left" in stderr:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if any(sign in stderr for sign in _NO_SUCH_REVISION):
        return DataError(
            f"{url} has no revision {revision!r}: give a branch, a tag or a full 40-digit commit hash "
            f"in clone_data.revision ({last[0]})"
        )
    if any(sign in stderr.lower() for sign in _MAY_PASS):
        return TransientError(f"{url} could not be reached ({last[0]})")
    return DataError(f"{url} could not be fetched: check clone_data.url ({last[0]})")


def _git(arguments: list[str], cwd: Path) -> str:
    result = _run(arguments, cwd)
    if result.returncode != 0:
        raise DataError(f"git {arguments[0]} failed in {cwd}: {result.stderr.strip()}")
    return result.stdout


def _run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command, environment = _command(arguments), _environment()
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace")


def _command(arguments: list[str]) -> list[str]:
    """Any owner is taken: we only read."""
    return ["git", "-c", "safe.directory=*", "-c", "gc.auto=0", *arguments]


def _environment() -> dict[str, str]:
    """The user's own (how to sign in, over which ssh), but never a question at the terminal or a smudge filter."""
    kept = {k: v for k, v in os.environ.items() if k not in _NOT_OURS and not k.startswith("GIT_TRACE_")}
    return kept | {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None  # opened with a pipe
    return process.stdout
