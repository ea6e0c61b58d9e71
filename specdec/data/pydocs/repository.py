"""Publishing the conversations as a local git repository, of the same hash wherever it is made."""

import os
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

from specdec import io
from specdec.data.pydocs.card import card
from specdec.data.pydocs.harvest import conversations
from specdec.data.pydocs.packages import versions
from specdec.errors import DataError


def publish(repo: Path) -> str:
    """Make ``repo`` a git repository with the conversations in one commit of ``main``; return its hash.

    A repository of the same fingerprint is left as it is (another process may be reading it), an older one is
    replaced. It is built aside and renamed, so that no kill leaves half of one; of two processes one waits for
    the other. Raises DataError without git, and where ``repo`` holds something else.
    """
    repo.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(repo.with_name(f"{repo.name}.lock")):
        return _publish(repo, fingerprint())


def _publish(repo: Path, mark: str) -> str:
    if repo.exists():
        readme = repo / "README.md"
        recorded = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        if f"Fingerprint: {mark}\n" in recorded:
            return _git(repo, "rev-parse", "main")
        if "Fingerprint: " not in recorded and any(repo.iterdir()):
            raise DataError(f"{repo} holds something else than published documentation: name another folder")
    with io.replacing_dir(repo) as aside:
        return _build(aside, mark)


def fingerprint() -> str:
    """Changes whenever the conversations could: packages, versions, this package's source."""
    code = [io.sha256_file(file) for file in sorted(Path(__file__).parent.glob("*.py"))]
    return io.sha256_json([versions(), code])


def _build(repo: Path, mark: str) -> str:
    _git(repo, "init", "--quiet", "--template=", "--initial-branch=main")
    rows = list(conversations())
    io.write_jsonl(repo / "train.jsonl", rows)
    io.write_text(repo / "README.md", card(rows, mark))
    _git(repo, "add", "README.md", "train.jsonl")
    _git(repo, "commit", "--quiet", "--message", "Documentation as conversations")
    return _git(repo, "rev-parse", "HEAD")


def _git(repo: Path, *arguments: str) -> str:
    """Run git without any configuration of the user's or the machine's."""
    if not shutil.which("git"):
        raise DataError("git is not on PATH: it is needed to publish the documentation as a repository")
    who = {"NAME": "specdec", "EMAIL": "specdec@localhost", "DATE": "2020-01-01T00:00:00+0000"}
    settings = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env = {**kept, **settings, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=repo, env=env, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"git {arguments[0]} failed in {repo}: {done.stderr.strip()}")
    return done.stdout.strip()
