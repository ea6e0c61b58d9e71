"""DVC's cache: what no commit, no experiment and not the workspace needs. DVC is called as a command.

The scope is `dvc gc --workspace --all-commits --all-experiments`: whatever is recorded in any commit that a branch or
tag reaches stays, and so do results of now, each with the copies of its metrics. Never a remote: other clones'
commits, which are not here, may need it.
"""

import functools
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from specdec.errors import SpecdecError, TransientError
from specdec.room import Removal, size_of

_REMOVING = re.compile(r"^Removing (?P<path>/.+)$", re.MULTILINE)
_READS = 20  # of the lock, at most
_WHOLE = ["--workspace", "--all-commits", "--all-experiments"]
# DVC's gc counts no output that git holds (`cache: false`), and removes its copy in the cache. The run cache restores
# a stage only where all copies are there: one metric gone, and a result that stays is made again.
_COUNTING_ALL = """
import sys
from dvc.cli import main
from dvc.output import Output

counted = Output.get_used_objs

def count(output, **options):
    output.use_cache = True
    return counted(output, **options)

Output.get_used_objs = count
sys.exit(main(sys.argv[1:]))
"""


def check_idle(root: Path) -> None:
    """Raises TransientError where a `dvc repro` is going on: it says so in its lock, which a kill leaves behind."""
    locks = _locks(root / ".dvc/tmp/rwlock")
    holders = [*locks.get("write", {}).values(), *(one for read in locks.get("read", {}).values() for one in read)]
    for holder in holders:
        if psutil.pid_exists(int(holder["pid"])):
            raise TransientError(
                f"`{holder['cmd']}` is going on in this folder (pid {holder['pid']}): wait for it, or stop it"
            )


def _locks(file: Path) -> dict[str, Any]:
    """What DVC's lock says. DVC writes it in place: what can't be read now can be in a moment, or is a ruin."""
    for _ in range(_READS):
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            break
        except ValueError:
            time.sleep(0.05)
        else:
            return found
    return {}


def cache_removal(root: Path) -> tuple[Removal | None, str]:
    """(what can go, why the cache is left as it is); None and "" where it holds nothing else."""
    if not (root / ".dvc").is_dir():
        return None, ""
    cache = Path(_dvc(root, "cache", "dir").strip())
    if not cache.resolve().is_relative_to((root / ".dvc").resolve()):
        return (
            None,
            f"DVC's cache {cache} is outside this project, and others may use it: `dvc gc --projects` knows how",
        )
    try:
        told = _gc(root, "--dry")
    except SpecdecError as error:
        return None, str(error)
    found = [Path(path) for path in _REMOVING.findall(told)]
    if not found:
        return None, ""
    what = f"{len(found)} objects of {cache.relative_to(root)}"
    why = "results that no commit, no experiment and not the workspace holds"
    return Removal(what, why, sum(map(size_of, found)), functools.partial(_collect, root)), ""


def _collect(root: Path) -> None:
    _gc(root, "--force")


def _gc(root: Path, how: str) -> str:
    return _dvc(root, "gc", *_scope(root), how, program=("-c", _COUNTING_ALL))


def _scope(root: Path) -> list[str]:
    """Without git there is the workspace alone."""
    return _WHOLE if any((folder / ".git").exists() for folder in (root, *root.parents)) else ["--workspace"]


def _dvc(root: Path, *command: str, program: tuple[str, ...] = ("-m", "dvc")) -> str:
    """Its output. Raises SpecdecError with the last line of one that failed."""
    done = subprocess.run([sys.executable, *program, *command], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise SpecdecError(f"`dvc {' '.join(command)}` failed, and the cache is left as it is: {last}")
    return done.stdout + done.stderr
