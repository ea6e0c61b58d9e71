"""What another machine has run comes from DVC's remote, and what ran here goes there.

    python -m flows.remote fetch STAGE     into DVC's cache, from which `dvc repro` restores the stage without running
                                           it; exits with 3 where no machine has run it with these inputs, with 4
                                           where the cache had all of it
    python -m flows.remote send STAGE

`SPECDEC_DVC_REMOTE` names the remote. What travels is DVC's run cache: a small entry, under a hash of the stage's
command, inputs and settings, says which outputs came of them. `dvc push --run-cache` sends every entry there is, and
leaves out the metrics that git holds (`cache: false`), without which DVC restores nothing elsewhere; so a stage's own
entry is sent here, with all that it names. A stage with an output that git holds (a receipt: `registry.json`) has no
entry, as DVC itself keeps none: it always runs where it is wanted.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flows.graph import open_repo
from specdec.errors import ConfigError, DataError, SpecdecError, TransientError
from specdec.io import write_text
from specdec.tracking.store import hide_credentials, project_root

REMOTE = "SPECDEC_DVC_REMOTE"
_ENTRY = re.compile("[0-9a-f]{64}")  # what is being sent has another name, until it is whole
ABSENT = 3
KEPT = 4


def remote_name(root: Path) -> str | None:
    """The one that `SPECDEC_DVC_REMOTE` names; None: nothing travels. Raises ConfigError where DVC has none such."""
    name = os.environ.get(REMOTE)
    if not name:
        return None
    with open_repo(root) as repo:
        known = sorted(repo.config["remote"])
    if name not in known:
        raise ConfigError(
            f"{REMOTE} is {name!r}, and DVC has no such remote (it has: {', '.join(known) or 'none'}): "
            f"`dvc remote add {name} URL`"
        )
    return name


def fetch(repo: Any, stage: Any) -> int:
    """0: DVC can now bring the stage up to date without running it; KEPT: and nothing had to come; ABSENT: it cannot.

    Raises TransientError where the outputs of a run that is known are not all there: a stage that another machine
    has run is never run again because a connection broke.
    """
    from dvc.exceptions import DvcException

    kept = True
    if not stage.changed(allow_missing=True):  # `dvc.lock` came with git, and only the files are missing
        kept = _is_kept(out for out in stage.outs if out.use_cache)
        with contextlib.suppress(DvcException):  # or they were never pushed
            repo.pull([stage.addressing])
        if not repo.stage.get_target(stage.addressing).changed():
            return KEPT if kept else 0
    key = _key(stage)
    if key is None:
        return ABSENT
    there, here = _entries(repo, key)
    if not there.fs.exists(there.path):
        return ABSENT
    # Two machines may have run it at the same time: all others take the same one.
    known = [name for path in there.fs.find(there.path) if _ENTRY.fullmatch(name := there.fs.name(path))]
    if not known:
        return ABSENT
    value = min(known)
    here.take(there, value)
    kept = kept and _is_kept(_outputs(repo, key, value))
    if not _is_whole(repo, key, value):
        raise TransientError(
            f"another machine has run {stage.addressing}, and not all of its outputs came from the remote: try "
            f"again; if they were removed there, remove {there.path} too, and it runs again"
        )
    return KEPT if kept else 0


def send(repo: Any, stage: Any) -> None:
    """Sends the outputs, then the entry that names them: whoever sees the entry finds the outputs. What was skipped
    for want of something on this machine is no result for others. Raises TransientError, or DataError where the
    outputs are not those of the inputs as they are now: DVC looks at these when a run has ended."""
    changed = stage.changed()  # asked first: `_key` reads the inputs anew
    key = _key(stage)
    if key is None:
        repo.push([stage.addressing])
        return
    if _is_skipped(stage):
        print(f"{stage.addressing} was skipped here: that is not sent", flush=True)
        return
    before = _before(repo, stage)
    if changed or (before.exists() and before.read_text(encoding="utf-8") != key):
        raise DataError(
            f"an input of {stage.addressing} changed while it ran, or since: its outputs are not sent; "
            f"`dvc repro -f -s {stage.addressing}` runs it again"
        )
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    there, here = _entries(repo, key)
    value = _get_cache_hash(to_single_stage_lockfile(stage))
    if there.fs.exists(there.file(value)):
        return
    repo.stage_cache.save(stage)
    for odb, objects in repo.stage_cache.get_used_objs([(key, value)]).items():
        if repo.cloud.push(objects, odb=odb).failed or repo.cloud.status(objects, odb=odb).missing:
            raise TransientError(f"the outputs of {stage.addressing} did not all reach the remote: run it again")
    there.take(here, value)
    before.unlink(missing_ok=True)


def _before(repo: Any, stage: Any) -> Path:
    """Where the key of a stage that is about to run is written down."""
    return Path(repo.root_dir) / ".specdec" / "running" / f"{stage.addressing.replace('/', '_')}.key"


def _is_skipped(stage: Any) -> bool:
    for out in stage.outs:
        if out.is_metric and Path(out.fs_path).suffix == ".json":
            try:
                found = json.loads(Path(out.fs_path).read_text(encoding="utf-8"))
            except ValueError:  # somebody else's stage, who calls it JSON
                continue
            if isinstance(found, dict) and "skipped" in found:
                return True
    return False


class _Entries:
    """The entries of one key in DVC's cache here, or in the remote."""

    def __init__(self, odb: Any, key: str) -> None:
        self.fs = odb.fs
        self.path = odb.fs.join(odb.path, "runs", key[:2], key)

    def file(self, value: str) -> str:
        return str(self.fs.join(self.path, value))

    def take(self, source: "_Entries", value: str) -> None:
        from dvc.fs import generic

        self.fs.makedirs(self.path, exist_ok=True)
        generic.copy(source.fs, source.file(value), self.fs, self.file(value))


def _entries(repo: Any, key: str) -> tuple[_Entries, _Entries]:
    """(in the remote, here)."""
    remote = repo.cloud.get_remote_odb(command="push", hash_name="md5-dos2unix")  # where DVC keeps its run cache
    return _Entries(remote, key), _Entries(repo.cache.legacy, key)


def _key(stage: Any) -> str | None:
    """The hash under which DVC keeps runs of this stage on what its inputs are now; None: it keeps none."""
    from dvc.stage.cache import _can_hash, _get_stage_hash

    if any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot)):
        return None
    stage.save_deps()
    return _get_stage_hash(stage) if _can_hash(stage) else None


def _outputs(repo: Any, key: str, value: str) -> list[Any]:
    """Those of an entry, with the metrics: `cache: false` is not written there."""
    cache = repo.stage_cache._load_cache(key, value)
    return list(repo.stage_cache._create_stage(cache).outs) if cache else []


def _is_kept(outputs: Iterable[Any]) -> bool:
    """Whether the cache here holds them all."""
    return not any(out.changed_cache() for out in outputs)


def _is_whole(repo: Any, key: str, value: str) -> bool:
    from dvc.exceptions import CollectCacheError

    try:
        used = repo.stage_cache.get_used_objs([(key, value)])  # fetches the lists of folders
    except CollectCacheError:
        return False
    return bool(used) and all(
        not repo.cloud.pull(objects, odb=odb).failed and not repo.cloud.status(objects, odb=odb).missing
        for odb, objects in used.items()
    )


def main() -> None:
    """Exits with ABSENT or KEPT, or as a stage does."""
    action, name = sys.argv[1:]
    root = project_root()
    remote = remote_name(root)
    if remote is None:
        raise ConfigError(f"{REMOTE} names no remote: set it to one that DVC has")
    with open_repo(root, {"core": {"remote": remote}}) as repo:
        from dvc.repo import lock_repo

        with speaking(remote), lock_repo(repo):
            stage = repo.stage.get_target(name)
            if action == "send":
                send(repo, stage)
            elif code := fetch(repo, stage):
                if code == ABSENT:
                    write_text(_before(repo, stage), _key(stage) or "")
                sys.exit(code)


@contextlib.contextmanager
def speaking(remote: str) -> Iterator[None]:
    """Each kind of remote raises what its library raises; here it becomes one line without credentials."""
    try:
        yield
    except SpecdecError:
        raise
    except Exception as error:
        told = hide_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
        raise TransientError(f"the DVC remote {remote} fails: {told[:500]}") from error


if __name__ == "__main__":
    try:
        main()
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
