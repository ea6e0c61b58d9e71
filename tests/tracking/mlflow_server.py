"""A real MLflow server on loopback, with its own database and artifacts, that can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.servers import wait_until_healthy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """In `folder`; tables: an MLflow database without content."""

    def __init__(self, folder: Path, tables: Path) -> None:
        folder.mkdir()
        (folder / "mlflow.db").write_bytes(tables.read_bytes())
        self._folder, self._port = folder, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self._folder}/mlflow.db",
            "--artifacts-destination": str(self._folder / "artifacts"),
        }
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"}
        command = [sys.executable, "-m", "mlflow", "server", *[x for pair in options.items() for x in pair]]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        wait_until_healthy(self.url, self._process)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """With its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None
