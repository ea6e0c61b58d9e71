"""Cloning: pinned, whole, with Git LFS; and what a user meets when something is wrong."""

import errno
import gzip
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from specdec.data.lfs import Pointer, fetch_object
from specdec.data.source import Source, clone_file
from specdec.errors import DataError, SpecdecError, TransientError
from tests.data.repositories import ROWS, commit, git


def pointer_text(content: bytes) -> bytes:
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


Clone = Callable[..., Source]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    def call(
        url: str | Path, revision: str | None = "main", file: str | None = "train.jsonl", share: float = 0.0
    ) -> Source:
        return clone_file(str(url), revision, file, tmp_path / "out.jsonl", tmp_path / "work", share, print)

    return call


def test_a_pinned_commit_is_what_comes(repository: Path, clone: Clone, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    commit(repository, ROWS[: len(ROWS) // 2], "later")
    for url in (repository, f"file://{repository}"):
        source = clone(url, revision=first)
        assert (tmp_path / "out.jsonl").read_bytes() == ROWS
        assert source.commit == first
        assert source.rows == 50
        assert source.licence == "cc-by-4.0"
        assert source.sha256 == hashlib.sha256(ROWS).hexdigest()


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("README.md", "---\nlicense: other\nlicense_name: ours\n---\n", "ours"),
        ("README.md", "# Data\nlicense: mit\n", "unknown"),
        ("LICENSE", "\n  MIT License\n\nCopyright", "MIT License"),
    ],
)
def test_licences(repository: Path, clone: Clone, name: str, text: str, wanted: str) -> None:
    (repository / "README.md").write_text("")
    (repository / name).write_text(text)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "licence")
    assert clone(repository).licence == wanted


def test_a_tag_and_a_moved_branch(repository: Path, clone: Clone) -> None:
    first = clone(repository).commit
    git(repository, "tag", "-a", "v1", "-m", "v1")
    second = commit(repository, ROWS * 2, "more")
    assert clone(repository).commit == second
    assert clone(repository, revision="v1").commit == first


@pytest.mark.parametrize("revision", ["nowhere", "f" * 40])
def test_no_such_revision(repository: Path, clone: Clone, revision: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"has no revision '{revision}'.*clone_data\.revision"):
        clone(repository, revision=revision)
    assert not (tmp_path / "out.jsonl").exists()


def test_no_such_repository(tmp_path: Path, clone: Clone) -> None:
    with pytest.raises(DataError, match=r"could not be fetched: check clone_data\.url"):
        clone(tmp_path / "nothing")
    with pytest.raises(TransientError, match="could not be reached"):
        clone("http://127.0.0.1:9/data")


def test_no_such_file(repository: Path, clone: Clone, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file 'other.jsonl'.*README.md, train.jsonl"):
        clone(repository, file="other.jsonl")
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_too_many_bad_rows(repository: Path, clone: Clone, tmp_path: Path) -> None:
    commit(repository, ROWS + b"{\n" + b'{"conversations": []}\n', "bad")
    with pytest.raises(DataError, match=r"2 of 52 rows .* 1 not JSON, 1 no conversation; rows 51 \(not JSON\), 52"):
        clone(repository)
    assert not (tmp_path / "out.jsonl").exists()
    source = clone(repository, share=0.1)
    assert source.bad_rows == {"not JSON": 1, "no conversation": 1}
    assert source.bad_lines == [(51, "not JSON"), (52, "no conversation")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_plain_file(clone: Clone, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    content = ROWS if name == "rows.jsonl" else b"[" + b",".join(ROWS.splitlines()) + b"]"
    file.write_bytes(content)
    for url in (file, f"file://{file}"):
        source = clone(url, None, None)
        assert (tmp_path / "out.jsonl").read_bytes() == content
        assert (source.url, source.revision, source.commit, source.file) == (str(url), None, None, None)
        assert (source.rows, source.size) == (50, len(content))
        assert source.sha256 == hashlib.sha256(content).hexdigest()


def test_file_urls(repository: Path, clone: Clone, tmp_path: Path) -> None:
    """As other programs write them: quoted, with or without the host; for a file, a repository and its LFS store."""
    folder = repository.rename(tmp_path / "my data, 100% é")
    for url in (folder.as_uri(), folder.as_uri().replace("file:///", "file://localhost/")):
        assert clone(f"{url}/train.jsonl", None, None).rows == 50
        assert clone(url).rows == 50
        with pytest.raises(DataError, match=r"is a folder: .* needs both"):
            clone(url, None, None)
    commit(folder, pointer_text(ROWS), "lfs")
    oid = hashlib.sha256(ROWS).hexdigest()
    stored = folder / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(ROWS)
    assert clone(folder.as_uri()).sha256 == oid


@pytest.mark.parametrize("name", ["a?b#c.jsonl", "[a.jsonl", "100%.jsonl"])
def test_a_file_url_without_quoting(clone: Clone, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ROWS)
    assert clone(f"file://{tmp_path / name}", None, None).rows == 50


def test_a_file_on_another_machine(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    with pytest.raises(DataError, match="is no file on this machine"):
        clone(f"file://elsewhere{tmp_path}/rows.jsonl", None, None)


def test_a_file_of_another_format_is_named(clone: Clone, tmp_path: Path) -> None:
    """Whatever share of bad rows is allowed."""
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(ROWS))
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz is compressed with gzip: decompress it"):
        clone(tmp_path / "rows.jsonl.gz", None, None, share=1.0)
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_a_cut_array_is_no_shorter_file(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b"[" + b",".join(ROWS.splitlines()))
    with pytest.raises(DataError, match=r"rows\.json ends in the middle of its array, at row 50"):
        clone(tmp_path / "rows.json", None, None, share=1.0)
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_a_pointer_is_no_plain_file(clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(pointer_text(ROWS))
    with pytest.raises(DataError, match=r"rows\.json is a Git LFS pointer"):
        clone(tmp_path / "rows.json", None, None)


def test_a_plain_file_and_a_repository_are_told_apart(repository: Path, clone: Clone, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl is a plain file: set clone_data\.revision .* to null"):
        clone(repository / "train.jsonl")
    with pytest.raises(DataError, match=r"dataset is a folder: .* needs both"):
        clone(repository, None, None)
    with pytest.raises(DataError, match=r"nowhere is no file on this machine"):
        clone(tmp_path / "nowhere", None, None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder is a folder and no git repository: name the file in it"):
        clone(tmp_path / "folder")


def test_a_bare_repository(repository: Path, clone: Clone, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repository), "bare")
    assert clone(tmp_path / "bare").rows == 50


def test_lfs_from_a_local_store(repository: Path, clone: Clone, tmp_path: Path) -> None:
    commit(repository, pointer_text(ROWS), "lfs")
    with pytest.raises(DataError, match=r"holds the pointer .* but not the object"):
        clone(repository)
    oid = hashlib.sha256(ROWS).hexdigest()
    stored = repository / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(ROWS[:-1])
    with pytest.raises(DataError, match="content is damaged"):
        clone(repository)
    stored.write_bytes(ROWS)
    assert clone(repository).rows == 50
    assert (tmp_path / "out.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize("wrong", ["size", "sha256"])
def test_lfs_content_is_checked_by_size_and_by_sha256(
    repository: Path, clone: Clone, tmp_path: Path, wrong: str
) -> None:
    """Each catches what the other would let pass."""
    pointer = pointer_text(ROWS)
    if wrong == "size":
        pointer = pointer.replace(b"size ", b"size 1")
    commit(repository, pointer, "lfs")
    oid = hashlib.sha256(ROWS).hexdigest()
    stored = repository / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(ROWS if wrong == "size" else ROWS.replace(b"a", b"e", 1))
    with pytest.raises(DataError, match="content is damaged"):
        clone(repository)
    assert not (tmp_path / "out.jsonl").exists()


def test_lfs_content_moves_to_another_file_system(
    repository: Path, clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, pointer_text(ROWS), "lfs")
    oid = hashlib.sha256(ROWS).hexdigest()
    stored = repository / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    stored.parent.mkdir(parents=True)
    stored.write_bytes(ROWS)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, _within_a_folder(getattr(os, name)))
    assert clone(repository).sha256 == oid
    assert (tmp_path / "out.jsonl").read_bytes() == ROWS


def _within_a_folder(move: Callable[..., None]) -> Callable[..., None]:
    """As if every folder were a file system of its own."""

    def call(source: Any, target: Any, **more: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        move(source, target, **more)

    return call


@dataclass
class LfsServer:
    """A batch API and its store; `fail_after` breaks the connection after so many bytes, once."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    fail_after: int | None = None
    status: int = 200
    answer: bytes | None = None  # instead of the batch API's own
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def lfs() -> Iterator[LfsServer]:
    state = LfsServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["objects"][0]
            assert self.path == "/data.git/info/lfs/objects/batch"
            answer: dict[str, object] = {"oid": asked["oid"], "error": {"code": 404, "message": "no"}}
            if asked["oid"] in state.objects:
                header = {"X-Store": "yes"}
                where = {"href": f"{state.url}/store/{asked['oid']}", "header": header}
                answer = {"oid": asked["oid"], "actions": {"download": where}}
            self.send_response(state.status)
            self.send_header("Location", self.path)
            self.end_headers()
            self.wfile.write(state.answer or json.dumps({"objects": [answer]}).encode())

        def do_GET(self) -> None:
            assert self.headers["X-Store"] == "yes"
            content = state.objects[self.path.rsplit("/")[-1]]
            state.ranges.append(self.headers["Range"])
            start = int((self.headers["Range"] or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut, state.fail_after = state.fail_after, None
            self.wfile.write(content[start:] if cut is None else content[start:cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def test_lfs_over_http_goes_on_where_it_broke_off(lfs: LfsServer, tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    pointer = Pointer(hashlib.sha256(content).hexdigest(), len(content))
    lfs.objects[pointer.oid] = content
    lfs.fail_after = 1_500_000
    out = tmp_path / "part"
    with pytest.raises(TransientError, match="could not be reached"):
        fetch_object(f"{lfs.url}/data", pointer, out, print)
    have = out.stat().st_size
    assert 0 < have <= 1_500_000
    fetch_object(f"{lfs.url}/data", pointer, out, print)
    assert out.read_bytes() == content
    assert lfs.ranges == [None, f"bytes={have}-"]


def test_lfs_over_http_refusals(lfs: LfsServer, tmp_path: Path) -> None:
    pointer = Pointer("0" * 64, 3)
    with pytest.raises(DataError, match="has no object 000000000000"):
        fetch_object(f"{lfs.url}/data.git", pointer, tmp_path / "part", print)
    lfs.status = 503
    with pytest.raises(TransientError, match="answered 503"):
        fetch_object(f"{lfs.url}/data", pointer, tmp_path / "part", print)
    lfs.status = 403
    with pytest.raises(DataError, match="refused the Git LFS request with 403"):
        fetch_object(f"{lfs.url}/data", pointer, tmp_path / "part", print)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Please sign in</html>",
        b"\xff",
        b"[]",
        b'{"objects": []}',
        b'{"objects": [null]}',
        b'{"objects": [{"oid": "0"}]}',
        b'{"objects": [{"actions": {"download": {"header": {}}}}]}',
        b'{"objects": [{"actions": {"download": "here"}}]}',
    ],
)
def test_lfs_answers_of_something_else(lfs: LfsServer, tmp_path: Path, answer: bytes) -> None:
    lfs.answer = answer
    with pytest.raises(DataError, match="does not answer as a Git LFS server does"):
        fetch_object(f"{lfs.url}/data", Pointer("0" * 64, 3), tmp_path / "part", print)


@pytest.mark.parametrize("place", ["nowhere", "ftp://example.org/x", "http://[::bad"])
def test_lfs_places_that_are_none(lfs: LfsServer, tmp_path: Path, place: str) -> None:
    lfs.answer = json.dumps({"objects": [{"actions": {"download": {"href": place, "header": None}}}]}).encode()
    with pytest.raises(DataError, match="leads nowhere"):
        fetch_object(f"{lfs.url}/data", Pointer("0" * 64, 3), tmp_path / "part", print)


def test_lfs_redirects_in_a_circle(lfs: LfsServer, tmp_path: Path) -> None:
    lfs.status = 307
    with pytest.raises(DataError, match="leads nowhere"):
        fetch_object(f"{lfs.url}/data", Pointer("0" * 64, 3), tmp_path / "part", print)


def test_lfs_never_prints_a_password(lfs: LfsServer, tmp_path: Path) -> None:
    url = lfs.url.replace("://", "://me:secret@")
    for lfs.status, lfs.answer in ((200, None), (200, b"<html>"), (403, None), (503, None), (307, None)):
        with pytest.raises(SpecdecError) as caught:
            fetch_object(f"{url}/data", Pointer("0" * 64, 3), tmp_path / "part", print)
        assert "secret" not in str(caught.value)
