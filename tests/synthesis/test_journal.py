"""The journal: whole lines only, one writer, one fingerprint."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import DataError, TransientError
from specdec.synthesis import Journal, journal_path
from specdec.synthesis.journal import VERSION
from specdec.synthesis.run import assemble

SETTINGS = {"temperature": 0.0}


def row(number: int) -> dict[str, Any]:
    return {"id": f"r{number}", "text": "ä\u2028" * number}


def filled(folder: Path, count: int = 3) -> Path:
    with Journal.open(folder / "j.jsonl", SETTINGS) as journal:
        for number in range(count):
            journal.answered(f"r{number}", row(number))
        journal.failed("bad", "http_400", "no")
        return journal.path


def test_rows_come_back(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert len(journal) == 3
        assert [journal.row(f"r{i}") for i in range(3)] == [row(i) for i in range(3)]
        assert "bad" not in journal
        assert [journal.why(key) for key in ("bad", "r0", "unheard of")] == ["http_400", None, None]


def test_a_failed_row_can_be_answered_later(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        journal.answered("bad", {"id": "bad"})
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert "bad" in journal
        assert journal.why("bad") is None


def test_a_row_is_answered_once(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal, pytest.raises(AssertionError, match="twice"):
        journal.answered(f"r{0}", row(0))


@given(cut=st.integers(min_value=0, max_value=400))
def test_a_torn_end_is_cut_off_wherever_it_is(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    path = filled(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = whole[: max(0, len(whole) - cut)].count(b"\n")
    with Journal.open(folder / "j.jsonl", SETTINGS) as journal:
        assert len(journal) == max(0, min(3, kept - 1))
        journal.answered("new", {"id": "new"})
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and json.loads(line) for line in lines)
    assert len(lines) == max(1, kept) + 1


def test_blocks_of_zeros_at_the_end_are_cut_off(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert len(journal) == 3
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"{oops\n", *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged at line 3"):
        Journal.open(tmp_path / "j.jsonl", SETTINGS)
    assert path.read_bytes() == damaged


def test_other_settings_have_another_file(tmp_path: Path) -> None:
    paths = {journal_path(tmp_path, s) for s in (SETTINGS, {"temperature": 1.0}, {"temperature": 0.0, "top_p": 1.0})}
    assert len(paths) == 3
    assert journal_path(tmp_path, dict(SETTINGS)) == journal_path(tmp_path, SETTINGS)


def test_a_journal_of_other_settings_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = filled(tmp_path)
    before = path.read_bytes()
    other = {"temperature": 1.0, "base": {"weights": "x"}}
    with pytest.raises(
        DataError, match=r"base.weights was None and is 'x'; temperature was 0.0 and is 1.0\): restore"
    ):
        Journal.open(path, other)
    assert path.read_bytes() == before
    Journal.open(path, SETTINGS).close()


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": "somebody\'s data"}\n')
    with pytest.raises(DataError, match="no journal of this version"):
        Journal.open(path, SETTINGS)
    assert path.read_text() == '{"id": "somebody\'s data"}\n'


def test_a_claimed_row_is_asked_once_and_a_failed_one_again(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert [journal.claim(key) for key in ("r0", "bad", "bad", "new", "new")] == [False, True, False, True, False]
        assert "bad" not in journal
        assert len(journal) == 3


def test_a_dropped_row_is_done_and_has_no_answer(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        journal.dropped_row("cut", "cut_off")
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert "cut" in journal
        assert not journal.claim("cut")
        assert journal.row("cut") is None
        assert journal.why("cut") == "cut_off"


def test_rows_come_back_between_appends(tmp_path: Path) -> None:
    """Rows of this run and of the one before, read in any order while more are written."""
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        for number in range(3, 40):
            journal.answered(f"r{number}", row(number))
            journal.failed(f"bad{number}", "http_400", "ä" * number)
            for read in {0, 2, number // 2, number}:
                assert journal.row(f"r{read}") == row(read)
        assert journal.row("bad") is None
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert [journal.row(f"r{i}") for i in reversed(range(40))] == [row(i) for i in reversed(range(40))]


def test_a_row_is_read_with_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        file, real, calls = journal._file, os.pread, []
        monkeypatch.setattr(os, "pread", lambda *a: calls.append(a) or real(*a))
        monkeypatch.setattr(journal, "_file", NotToBeRead(file))
        assert journal.row("r2") == row(2)
        assert len(calls) == 1
        monkeypatch.undo()


class NotToBeRead:
    """A file that is only good for its number."""

    def __init__(self, file: Any) -> None:
        self.fileno = file.fileno


def test_another_meaning_of_a_request_is_another_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, named = filled(tmp_path), journal_path(tmp_path, SETTINGS)
    monkeypatch.setattr("specdec.synthesis.journal.VERSION", VERSION + 1)
    assert journal_path(tmp_path, SETTINGS) != named
    with pytest.raises(DataError, match="an older version of specdec"):
        Journal.open(path, SETTINGS)


def test_the_category_is_the_prompts_and_not_the_journals(tmp_path: Path) -> None:
    answer = {
        "messages": [],
        "segments": [],
        "sampling": {"temperature": 0.0},
        "base": {},
        "token_ids_from": "server",
    }
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        journal.answered("r/0", {"id": "r", "sample": 0, "category": "old", **answer})
        assemble(journal, [{"id": "r", "category": "new", "messages": []}], 1, tmp_path / "out.jsonl")
    (made,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert made == {"id": "r", "sample": 0, "category": "new", **answer}
    assert list(made)[:3] == ["id", "sample", "category"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from specdec.synthesis.journal import Journal; import sys\n"
        f"Journal.open(Path({str(tmp_path)!r}) / 'j.jsonl', {SETTINGS!r})"
    )
    with Journal.open(tmp_path / "j.jsonl", SETTINGS):
        with pytest.raises(TransientError, match="in use by another run"):
            Journal.open(tmp_path / "j.jsonl", SETTINGS)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "TransientError" in other.stderr
    Journal.open(tmp_path / "j.jsonl", SETTINGS).close()


class Short:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self.room = file, room

    def write(self, data: bytes) -> int:
        taken = min(len(data), self.room)
        self.room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data[:taken]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1, 40, 200, 201])
def test_a_full_disk_keeps_whole_rows_and_takes_none_after_it(tmp_path: Path, room: int) -> None:
    journal = Journal.open(tmp_path / "j.jsonl", SETTINGS)
    journal._file = Short(journal._file, room)  # type: ignore[assignment]
    numbers = iter(range(40))
    with pytest.raises(OSError, match=r"No space|in part") as caught:  # noqa: PT012
        for number in numbers:
            journal.answered(f"r{number}", row(number))
    kept = number
    assert caught.value.errno == errno.ENOSPC
    journal._file.room = 10**6  # type: ignore[attr-defined]
    with pytest.raises(OSError):  # noqa: PT011 - there is room again, but half a line stands at the end
        journal.answered("later", row(1))
    with pytest.raises(OSError):  # noqa: PT011
        journal.close()
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as again:
        assert len(again) == kept
        assert [again.row(f"r{n}") for n in range(kept)] == [row(n) for n in range(kept)]
        again.answered("later", row(1))


def test_all_rows_are_durable_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a while after they were answered, before that."""
    synced, real = list[int](), os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    for seconds in (0.01, 60.0):
        monkeypatch.setattr("specdec.synthesis.journal.SECONDS_PER_SYNC", seconds)
        path = tmp_path / f"{seconds}.jsonl"
        with Journal.open(path, SETTINGS) as journal:
            synced.clear()
            journal.answered("r", row(1))
            deadline = time.monotonic() + 5
            while seconds < 1 and not synced and time.monotonic() < deadline:
                time.sleep(0.01)
            assert synced == ([path.stat().st_size] if seconds < 1 else [])
        assert synced[-1] == path.stat().st_size


@pytest.mark.parametrize("surfaces", ["at the next row", "at the end"])
def test_an_error_of_fsync_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surfaces: str) -> None:
    """Also where the next fsync says that all is well, as Linux does."""
    monkeypatch.setattr("specdec.synthesis.journal.SECONDS_PER_SYNC", 0.01)
    real, failed = os.fsync, threading.Event()

    def fsync(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread() and not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, "the disk is broken")
        real(descriptor)

    journal = Journal.open(tmp_path / "j.jsonl", SETTINGS)
    monkeypatch.setattr(os, "fsync", fsync)
    journal.answered("r1", row(1))
    assert failed.wait(5)
    time.sleep(0.02)
    if surfaces == "at the next row":
        with pytest.raises(OSError, match="the disk is broken"):
            journal.answered("r2", row(2))
    with pytest.raises(OSError, match="the disk is broken"):
        journal.close()
    Journal.open(tmp_path / "j.jsonl", SETTINGS).close()  # the lock is free


def test_an_error_of_the_journal_ends_a_run(
    scripted: Any, go: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Journal._append
    lines: list[Any] = []

    def append(self: Journal, entry: Any) -> Any:
        lines.append(entry)
        if len(lines) == 6:
            self._file = Short(self._file, 30)  # type: ignore[assignment]
        return real(self, entry)

    monkeypatch.setattr(Journal, "_append", append)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        go(scripted(), prompts(30))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    statistics, out = go(scripted(), prompts(30))
    assert (statistics.before, len(out)) == (4, 30)


def test_half_a_surrogate_pair_in_a_message_is_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        journal.failed("r", "bad_prompt", "half \ud83d")
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert journal.why("r") == "bad_prompt"


def test_the_index_does_not_grow_in_memory() -> None:
    """200,000 keys; as a dict of strings and tuples they take 60 MB."""
    code = (
        "import psutil; from specdec.synthesis.index import *; index = Index()\n"
        "def fill(keys):\n    for n in keys: index.put(f'{n:064d}/0', ANSWERED, (n, 9))\n"
        "fill(range(50_000)); before = psutil.Process().memory_info().rss\n"
        "fill(range(50_000, 200_000)); assert index.count(ANSWERED) == 200_000\n"
        "assert index.place(f'{123_456:064d}/0') == (123_456, 9)\n"
        "print(psutil.Process().memory_info().rss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16e6


@pytest.mark.parametrize("content", [b"somebody's notes\nof two lines\n", b"notes", b"{oops\n"])
def test_somebodys_file_is_not_wiped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no journal, or its first line is damaged"):
        Journal.open(path, SETTINGS)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b"{}\n", b'{"key": 3, "row": {}}\n', b'{"key": "x", "failed": 1}\n'])
def test_a_line_that_is_no_entry_is_damage(tmp_path: Path, line: bytes) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DataError, match="damaged at line 6"):
        Journal.open(path, SETTINGS)


def test_deep_nesting_is_a_torn_end(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"[" * 100_000 + b"\n")
    Journal.open(path, SETTINGS).close()
    assert path.read_bytes() == whole


def test_the_figures_of_runs_are_kept(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j.jsonl", SETTINGS) as journal:
        assert journal.empty
        journal.ran({"answer_tokens": 7})
        assert journal.empty
    path = filled(tmp_path)
    with Journal.open(path, SETTINGS) as journal:
        assert journal.runs == [{"answer_tokens": 7}]
        assert not journal.empty
