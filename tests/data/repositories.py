"""Small git repositories of conversations, made on the spot."""

import json
import subprocess
from pathlib import Path

ROWS = "".join(json.dumps({"conversations": [{"from": "User", "value": f"q{i}"}]}) + "\n" for i in range(50)).encode()
CARD = b"---\nlicense: cc-by-4.0\n---\n# Data\n"


def git(repository: Path, *command: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *command], cwd=repository, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repository: Path, content: bytes, message: str = "data") -> str:
    (repository / "train.jsonl").write_bytes(content)
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", message)
    return git(repository, "rev-parse", "HEAD")
