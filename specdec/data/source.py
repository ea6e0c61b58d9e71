"""A dataset's file, out of a git repository or plain, whole and checked, with a record of where it came from."""

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec.data.conversations import RowCount, read_conversations
from specdec.data.git import Checkout, fetch, local_path, without_credentials
from specdec.data.lfs import Pointer, fetch_object, read_pointer
from specdec.errors import DataError
from specdec.io import replacing, sha256_file, sha256_json


@dataclass(frozen=True)
class Source:
    """What `data/raw/source.json` says. commit: 40 hex digits; size in bytes; bad_rows: kind -> count.

    revision, commit and file are null for a plain file.
    """

    url: str
    revision: str | None
    commit: str | None
    file: str | None
    sha256: str
    size: int
    rows: int
    bad_rows: dict[str, int]
    bad_lines: list[tuple[int, str]]
    licence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def clone_file(
    url: str,
    revision: str | None,
    file: str | None,
    out: Path,
    work: Path,
    max_bad_share: float,
    say: Callable[[str], None],
) -> Source:
    """Brings `file` at `revision` of the repository `url` to `out`, Git LFS content included.

    With neither revision nor file, `url` is a plain file on this machine, and is copied.
    work: a folder for what has come so far; a killed clone goes on there. `out` appears whole or not at all.
    Raises DataError when the repository, the revision or the file does not exist, when LFS content is not what
    its pointer says, or when more than `max_bad_share` of the rows cannot be used (they are listed).
    """
    local = local_path(url)
    if revision is None or file is None:
        return _copy_file(url, local, out, max_bad_share, say)
    _check_repository(url, local)
    checkout = fetch(url, revision, work / sha256_json(url)[:16], say)
    with replacing(out) as aside:
        checkout.extract(file, aside)
        pointer = read_pointer(aside)
        if pointer:
            say(f"{file} is in Git LFS: {pointer.size / 1e6:,.1f} MB")
            _fetch_lfs(url, pointer, work, aside, say)
        count = _count(aside, file, max_bad_share)
        digest, size = sha256_file(aside), aside.stat().st_size
    say(f"{count.rows:,} rows, {count.bad.total()} of them unusable, at commit {checkout.commit[:12]}")
    return Source(
        without_credentials(url), revision, checkout.commit, file, digest, size, count.rows, dict(count.bad),
        count.bad_lines, _licence(checkout),
    )  # fmt: skip


def _check_repository(url: str, local: Path) -> None:
    """git's own word for a path that is no repository is the same as for one that it may not read."""
    if local.is_file():
        raise DataError(f"{url} is a plain file: set clone_data.revision and clone_data.file to null")
    bare = (local / "HEAD").is_file() and (local / "objects").is_dir()
    if local.is_dir() and not bare and not (local / ".git").exists():
        raise DataError(
            f"{url} is a folder and no git repository: name the file in it in clone_data.url, with revision and file "
            "null, or make it a repository (`git init`, `git add`, `git commit`)"
        )


def _copy_file(url: str, local: Path, out: Path, max_bad_share: float, say: Callable[[str], None]) -> Source:
    if not local.is_file():
        what = "is a folder" if local.is_dir() else "is no file on this machine"
        raise DataError(
            f"{url} {what}: clone_data.url names a plain file when revision and file are null; "
            "a git repository needs both"
        )
    say(f"copying {local}")
    with replacing(out) as aside:
        shutil.copyfile(local, aside)
        count = _count(aside, local.name, max_bad_share)
        digest, size = sha256_file(aside), aside.stat().st_size
    say(f"{count.rows:,} rows, {count.bad.total()} of them unusable")
    return Source(url, None, None, None, digest, size, count.rows, dict(count.bad), count.bad_lines, "unknown")


def _fetch_lfs(url: str, pointer: Pointer, work: Path, out: Path, say: Callable[[str], None]) -> None:
    part = work / f"{pointer.oid}.part"  # stays when the download is interrupted, so that it goes on
    fetch_object(url, pointer, part, say)
    shutil.move(part, out)  # not a rename: the work folder may be on another file system


def _count(file: Path, name: str, max_bad_share: float) -> RowCount:
    count = RowCount()
    for _ in read_conversations(file, count, name):
        pass
    if count.rows == 0:
        raise DataError(f"{name} has no rows: name a file of conversations, JSONL or one JSON array")
    if count.bad_share > max_bad_share:
        kinds = ", ".join(f"{n} {kind}" for kind, n in count.bad.most_common())
        lines = ", ".join(f"{line} ({kind})" for line, kind in count.bad_lines[:10])
        raise DataError(
            f"{count.bad.total()} of {count.rows} rows of {name} cannot be used, more than "
            f"clone_data.max_bad_share = {max_bad_share}: {kinds}; rows {lines}"
        )
    return count


def _licence(checkout: Checkout) -> str:
    """The `license:` of a dataset card, else the title of a LICENSE file, else `unknown`."""
    card = (checkout.read("README.md") or b"").decode(errors="replace")
    if card.startswith("---"):
        stated: dict[str, str] = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*?)[ \t]*$", card, re.MULTILINE))
        if "license" in stated:  # `other` has a name of its own
            return stated.get("license_name", stated["license"])
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        lines = (checkout.read(name) or b"").decode(errors="replace").split("\n")
        title = next((line.strip(" #") for line in lines if line.strip()), None)
        if title:
            return title
    return "unknown"
