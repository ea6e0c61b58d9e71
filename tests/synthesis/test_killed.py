"""A client that is killed at any moment and started again ends with the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.io import write_jsonl
from tests.synthesis.scripted import KEY

ROOT = Path(__file__).resolve().parents[2]


def start(server: Any, prompts: Path, folder: Path, out: Path) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("client_process.py")
    command = [sys.executable, str(script), server.url, KEY, str(prompts), str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_answers(server: Any, count: int, client: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 30
    while server.answered < count and client.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


@pytest.fixture
def file(tmp_path: Path, prompts: Any) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", prompts(60))
    return tmp_path / "prompts.jsonl"


class Victim:
    """A client that is started again and again over one journal; `again` counts what it asked twice."""

    def __init__(self, server: Any, file: Path, folder: Path) -> None:
        self.server, self.file, self.folder, self.out = server, file, folder / "rough", folder / "rough.jsonl"

    def start(self) -> "subprocess.Popen[str]":
        return start(self.server, self.file, self.folder, self.out)

    def kill(self, draw: random.Random) -> bool:
        """Kills it at some moment of its answers, or of a file that it opens; says whether it was still there."""
        client, moment = self.start(), draw.choice(MOMENTS)
        if moment == "start":
            time.sleep(draw.uniform(0, 0.6))
        elif moment == "journal":
            self.wait_until(client, lambda: any(f.stat().st_size for f in self.folder.glob("*.jsonl")))
        elif moment == "assembling":
            self.wait_until(client, lambda: any(self.out.parent.glob(f".{self.out.name}.*.part")))
        else:
            wait_for_answers(self.server, self.server.answered + draw.randrange(1, 14), client)
            time.sleep(draw.random() * 0.004)
        client.kill()
        client.communicate()
        return client.returncode == -signal.SIGKILL

    @staticmethod
    def wait_until(client: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
        while client.poll() is None and not reached():
            time.sleep(0.0005)

    def finish(self) -> bytes:
        client = self.start()
        text, _ = client.communicate(timeout=60)
        assert client.returncode == 0, text
        return self.out.read_bytes()


MOMENTS = ["start", "journal", "answers", "answers", "answers", "assembling"]


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_and_resumed(kills: int, scripted: Any, file: Path, tmp_path: Path) -> None:
    calm = scripted()
    undisturbed = Victim(calm, file, tmp_path / "calm").finish()
    draw, killed, done = random.Random(kills), 0, 0
    victim = Victim(scripted(delay=0.004), file, tmp_path)
    while killed < kills:
        killed += victim.kill(draw)
        if victim.out.exists():  # all is answered: begin anew, or nothing more could happen to it
            assert victim.out.read_bytes() == undisturbed
            victim.out.unlink()
            done += 1
            if done % 2:
                shutil.rmtree(victim.folder)
    assert victim.finish() == undisturbed
    again = victim.server.answered - (done // 2 + 2) * calm.answered
    assert again <= (kills + 1) * 4 * 3, "only what was in flight is asked again"


def test_terminated(scripted: Any, file: Path, tmp_path: Path) -> None:
    server = scripted(delay=0.01)
    client = start(server, file, tmp_path / "journal", tmp_path / "out.jsonl")
    wait_for_answers(server, 20, client)
    client.send_signal(signal.SIGTERM)
    text, _ = client.communicate(timeout=20)
    assert client.returncode == 130, text
    assert "interrupted: run the same command again" in text
    assert "Traceback" not in text
    assert KEY not in text
    assert KEY.encode() not in next((tmp_path / "journal").iterdir()).read_bytes()
    assert not (tmp_path / "out.jsonl").exists()
