"""Git LFS content, fetched and checked against its pointer.

Formats: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md (pointer) and docs/api/batch.md (batch API).
"""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from specdec.data.git import local_path, without_credentials
from specdec.errors import DataError, TransientError
from specdec.io import sha256_file

SIGNATURE = b"version https://git-lfs.github.com/spec/v1"
_TYPE = "application/vnd.git-lfs+json"
# Of the server's answers, not of the network: trying again does not help.
_WRONG_ANSWER = (httpx.TooManyRedirects, httpx.DecodingError, httpx.UnsupportedProtocol, httpx.InvalidURL)


@dataclass(frozen=True)
class Pointer:
    """What stands in the repository instead of the content: its sha256 and its size in bytes."""

    oid: str
    size: int


def read_pointer(file: Path) -> Pointer | None:
    """The pointer that a file is, or None when it is content."""
    with file.open("rb") as stream:
        head = stream.read(1024)
    if not head.startswith(SIGNATURE):
        return None
    oid = re.search(rb"^oid sha256:([0-9a-f]{64})$", head, re.MULTILINE)
    size = re.search(rb"^size (\d+)$", head, re.MULTILINE)
    if not oid or not size:
        raise DataError(f"{file.name} is a damaged Git LFS pointer: clone the repository again")
    return Pointer(oid[1].decode(), int(size[1]))


def fetch_object(url: str, pointer: Pointer, out: Path, say: Callable[[str], None]) -> None:
    """Writes the pointer's content to `out`, which may hold a part of it already.

    url: the repository's, as given to git: a local one's LFS store is read, an http(s) one's batch API asked.
    Raises DataError when the content is not there or is not what the pointer says, TransientError when the
    network fails (what has come stays in `out`).
    """
    local = local_path(url)
    if local.exists():
        _copy(local, pointer, out)
    elif url.startswith(("http://", "https://")):
        _download(url, pointer, out, say)
    else:
        shown = without_credentials(url)
        raise DataError(f"{shown}: the data is in Git LFS, which needs an https:// URL or a local path here")
    _check(pointer, out)


def _check(pointer: Pointer, out: Path) -> None:
    size, oid = out.stat().st_size, sha256_file(out)
    if (size, oid) != (pointer.size, pointer.oid):
        out.unlink()
        raise DataError(
            f"the Git LFS content is damaged: {size} bytes with sha256 {oid}, "
            f"and the pointer says {pointer.size} bytes with {pointer.oid}; run the stage again"
        )


def _copy(repository: Path, pointer: Pointer, out: Path) -> None:
    name = Path("lfs", "objects", pointer.oid[:2], pointer.oid[2:4], pointer.oid)
    source = next((p for p in (repository / ".git" / name, repository / name) if p.exists()), None)
    if source is None:
        raise DataError(
            f"{repository} holds the pointer of Git LFS object {pointer.oid[:12]} but not the object: "
            "run `git lfs fetch` there"
        )
    shutil.copyfile(source, out)


def _download(url: str, pointer: Pointer, out: Path, say: Callable[[str], None]) -> None:
    timeout = httpx.Timeout(60.0, connect=15.0)
    server = f"the Git LFS server of {without_credentials(url)}"
    try:
        with httpx.Client(timeout=timeout, follow_redirects=True) as client:
            place = _locate(client, url, pointer)
            _stream(client, place, pointer, out, say)
    except _WRONG_ANSWER as error:
        raise DataError(f"{server} gave an answer that leads nowhere: check clone_data.url ({error})") from None
    except httpx.TransportError as error:
        raise TransientError(f"{server} could not be reached: {error}") from None


@dataclass(frozen=True)
class _Place:
    """Where an object can be downloaded, and the headers to send there."""

    href: str
    headers: dict[str, str]


def _locate(client: httpx.Client, url: str, pointer: Pointer) -> _Place:
    """Asks the batch API."""
    endpoint = f"{url.removesuffix('/').removesuffix('.git')}.git/info/lfs/objects/batch"
    body = {
        "operation": "download",
        "transfers": ["basic"],
        "objects": [{"oid": pointer.oid, "size": pointer.size}],
    }
    response = client.post(endpoint, json=body, headers={"Accept": _TYPE, "Content-Type": _TYPE})
    shown = without_credentials(url)
    _raise_for(response, shown)
    try:
        answer = response.json()["objects"][0]
        if "error" in answer:
            raise DataError(f"the Git LFS server of {shown} has no object {pointer.oid[:12]}: {answer['error']}")
        action = answer["actions"]["download"]
        headers = {str(k): str(v) for k, v in (action.get("header") or {}).items()}
        return _Place(str(action["href"]), headers)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{shown} does not answer as a Git LFS server does: check clone_data.url, and that the repository "
            "is public or its password is known"
        ) from None


def _stream(client: httpx.Client, place: _Place, pointer: Pointer, out: Path, say: Callable[[str], None]) -> None:
    have = out.stat().st_size if out.exists() else 0
    if have >= pointer.size:  # whole, or too long and so not ours: the check decides
        return
    headers = place.headers | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", place.href, headers=headers) as response:
        _raise_for(response, "the Git LFS store")
        resumed = response.status_code == 206
        told = time.monotonic()
        with out.open("ab" if resumed else "wb") as sink:
            for block in response.iter_bytes(1 << 20):
                sink.write(block)
                if time.monotonic() - told > 3:
                    told = time.monotonic()
                    say(f"Git LFS: {sink.tell() / 1e6:,.0f} of {pointer.size / 1e6:,.0f} MB")


def _raise_for(response: httpx.Response, what: str) -> None:
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        raise TransientError(f"{what} answered {response.status_code}: try again later")
    if response.is_error:
        raise DataError(f"{what} refused the Git LFS request with {response.status_code}")
