"""Cloning a dataset's repository at a pinned revision, without a working tree of everything else.

Only the wanted revision is fetched (shallow), into a bare repository in a work folder; fetching again continues
there. Git LFS content is fetched by `specdec.data.lfs`, so the `git-lfs` program is not needed.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specdec.errors import DataError, TransientError

_NO_SUCH_REVISION = ("couldn't find remote ref", "not our ref", "unadvertised object", "invalid refspec")
_MAY_PASS = (
    "could not resolve host",
    "connect",
    "timed out",
    "early eof",
    "unexpected disconnect",
    "rpc failed",
    "returned error: 5",
)


@dataclass(frozen=True)
class Checkout:
    """A bare repository that holds `commit`."""

    repository: Path
    commit: str

    def read(self, file: str) -> bytes | None:
        """A small file's bytes at the commit; None when there is no such file."""
        result = subprocess.run(
            ["git", "cat-file", "blob", f"{self.commit}:{file}"], cwd=self.repository, capture_output=True
        )
        return result.stdout if result.returncode == 0 else None

    def extract(self, file: str, out: Path) -> None:
        """Writes a file of any size at the commit to `out`. Raises DataError when there is no such file."""
        with out.open("wb") as sink:
            result = subprocess.run(
                ["git", "cat-file", "blob", f"{self.commit}:{file}"],
                cwd=self.repository,
                stdout=sink,
                stderr=subprocess.PIPE,
            )
        if result.returncode != 0:
            raise DataError(f"the repository has no file {file!r} at {self.commit[:12]}: it has {self._files()}")

    def _files(self) -> str:
        names = _git(["ls-tree", "--name-only", self.commit], self.repository).split()
        return ", ".join(names[:20])


def fetch(url: str, revision: str, work: Path, say: Callable[[str], None]) -> Checkout:
    """Fetches one revision (full commit hash, tag or branch) of `url` into the bare repository `work`.

    Raises DataError when the repository or the revision does not exist, TransientError when the network fails.
    """
    if shutil.which("git") is None:
        raise DataError("the command `git` was not found: install git")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "HEAD").exists():
        _git(["init", "--quiet", "--bare"], work)
    say(f"fetching {revision} of {url}")
    local = Path(url.removeprefix("file://")).expanduser()
    source = str(local.resolve()) if local.exists() else url
    command = ["fetch", "--depth", "1", "--no-tags", "--force", source, revision]
    result = _run(command, work)
    if result.returncode != 0:
        raise _explain(url, revision, result.stderr)
    return Checkout(work, _git(["rev-parse", "FETCH_HEAD^{commit}"], work).strip())


def _explain(url: str, revision: str, stderr: str) -> DataError | TransientError:
    last = [line for line in stderr.strip().splitlines() if line.strip()][-1:] or ["git said nothing"]
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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    # Never ask for a password, never run smudge filters, and take any owner: we only read.
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    command = ["git", "-c", "safe.directory=*", "-c", "gc.auto=0", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, errors="replace")
