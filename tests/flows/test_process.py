"""Commands under their guard."""

import io
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.process import Commands, Stopped, _lines
from flows.turns import Turns


def test_output_and_code_are_passed_on(tmp_path: Path) -> None:
    lines: list[str] = []
    code = Commands().run(["sh", "-c", "pwd; echo é >&2; exit 7"], lines.append, tmp_path)
    assert code == 7
    assert lines == [str(tmp_path), "é"]


def test_a_command_that_a_signal_ends_has_the_shells_code(tmp_path: Path) -> None:
    assert Commands().run(["sh", "-c", "kill -9 $$"], print, tmp_path) == 137


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    started = time.monotonic()
    code = Commands().run(["sh", "-c", "setsid sleep 300 & exit 0"], print, tmp_path)
    assert code == 0
    assert time.monotonic() - started < 10  # it holds our pipe: without its end we would wait


def test_what_ignores_the_word_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.process.GRACE", 0.5)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"

    def leave(_line: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Commands().run([sys.executable, "-c", deaf], leave, tmp_path)
    assert time.monotonic() - started < 5


def test_stop_ends_what_runs_and_lets_nothing_begin(tmp_path: Path) -> None:
    commands = Commands()
    codes: list[int] = []
    up = threading.Event()
    run = threading.Thread(
        target=lambda: codes.append(
            commands.run(["sh", "-c", "echo up; exec sleep 300"], lambda line: up.set(), tmp_path)
        )
    )
    run.start()
    assert up.wait(20)
    commands.stop()
    run.join(10)
    assert codes == [143]
    with pytest.raises(Stopped):
        commands.run(["true"], print, tmp_path)


def test_lines_are_whole_whatever_the_pieces() -> None:
    class Pieces(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self.left = [content[i : i + 1] for i in range(len(content))]

        def read(self, _size: int = -1) -> bytes:
            return self.left.pop(0) if self.left else b""

    content = "one\ntwo é\r\n\n10%\r20%\r30%\r\nlast".encode()
    assert list(_lines(Pieces(content))) == ["one", "two é", "10%", "30%", "last"]  # type: ignore[arg-type]
    assert list(_lines(io.BytesIO(b"\xff\n"))) == ["\ufffd"]


def test_an_exclusive_stage_waits_for_others_and_is_not_starved() -> None:
    turns, log = Turns(), []
    inside, may_end = threading.Event(), threading.Event()

    def ordinary(name: str) -> None:
        with turns.take(exclusive=False):
            log.append(f"+{name}")
            inside.set()
            may_end.wait(10)
            log.append(f"-{name}")

    def alone() -> None:
        with turns.take(exclusive=True):
            log.append("alone")

    threads = [threading.Thread(target=ordinary, args=["a"])]
    threads[0].start()
    inside.wait(10)
    for late in (threading.Thread(target=alone), threading.Thread(target=ordinary, args=["b"])):
        threads.append(late)
        late.start()
        time.sleep(0.1)
    assert log == ["+a"]  # b came later than the exclusive one, and waits behind it
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert log[:3] == ["+a", "-a", "alone"]
    assert log[3:] == ["+b", "-b"]
