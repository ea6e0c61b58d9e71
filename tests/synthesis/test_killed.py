"""A client that is killed at any moment and started again ends with the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
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


def test_killed_and_resumed(scripted: Any, file: Path, tmp_path: Path) -> None:
    calm = scripted()
    client = start(calm, file, tmp_path / "calm", tmp_path / "calm.jsonl")
    text, _ = client.communicate(timeout=60)
    assert client.returncode == 0, text
    draw, killed = random.Random(5), 0
    server = scripted(delay=0.004)
    for _ in range(8):
        client = start(server, file, tmp_path / "rough", tmp_path / "rough.jsonl")
        wait_for_answers(server, server.answered + draw.randrange(1, 14), client)
        time.sleep(draw.random() * 0.004)
        client.kill()
        killed += client.wait(60) == -signal.SIGKILL
        client.communicate()
    assert killed >= 5
    client = start(server, file, tmp_path / "rough", tmp_path / "rough.jsonl")
    text, _ = client.communicate(timeout=60)
    assert client.returncode == 0, text
    assert (tmp_path / "rough.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    again = server.answered - calm.answered
    assert again <= 9 * 4 * 3, "only what was in flight is asked again"


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
