"""A Prefect server, the deployments of prefect.yaml and a worker for them, on this machine.

    python -m flows.serve [--port 4200]

In the foreground: Ctrl-C, SIGTERM or the end of this process end all of it, the runs that the worker has started too.
Every start lays down pool, limit and deployments; of the first two it keeps what was changed on Prefect's page.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from flows.process import Commands
from specdec.errors import ConfigError, SpecdecError, TransientError
from specdec.tracking import project_root

HOST = "127.0.0.1"
POOL = "specdec"
_PREFECT = [sys.executable, "-m", "prefect"]
_STARTS = 180.0  # seconds that a server may take on a busy machine with a new database
Say = Callable[[str], None]


class Part(threading.Thread):
    """A command that runs as long as we do; its output goes to a file in `.specdec`, its last lines to who asks."""

    def __init__(self, name: str, command: list[str], root: Path, ended: threading.Event, say: Say) -> None:
        super().__init__(name=name, daemon=True)
        self.command, self.root, self.say, self.ended = command, root, say, ended
        self.commands = Commands()
        self.lines: deque[str] = deque(maxlen=5)
        self.code: int | None = None
        self.log = root / ".specdec" / f"prefect-{name}.log"
        self.start()

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.ended.set()

    def _run(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8", buffering=1) as file:

            def keep(line: str) -> None:
                file.write(line + "\n")
                self.lines.append(line.strip())
                self.say(line)

            self.code = self.commands.run(self.command, keep, self.root)

    def stop(self) -> None:
        self.commands.stop()
        self.join()


def serve(port: int, root: Path, say: Say) -> None:
    """Until it is interrupted. Raises ConfigError where the port or prefect.yaml is not to be had, TransientError
    where the server or the worker ends."""
    _check(port, root)
    url = f"http://{HOST}:{port}/api"
    os.environ["PREFECT_API_URL"] = url  # before prefect is imported, which reads it once
    ended = threading.Event()
    with ExitStack() as stack:
        command = [*_PREFECT, "server", "start", "--host", HOST, "--port", str(port)]
        server = Part("server", command, root, ended, lambda _: None)
        stack.callback(server.stop)
        _wait_until_healthy(url, server)
        lay_down()
        _deploy(root)
        # Stopped first: runs that end now can still say so.
        worker = Part("worker", [*_PREFECT, "worker", "start", "--pool", POOL, "--type", "process"], root, ended, say)
        stack.callback(worker.stop)
        say(f"Prefect: http://{HOST}:{port}   (Ctrl-C ends it; PREFECT_API_URL={url})")
        ended.wait()
        gone = server if not server.is_alive() else worker
        raise TransientError(f"the Prefect {gone.name} ended (exit code {gone.code}): {_why(gone)}")


def lay_down() -> None:
    """The pool, and the limit of one run on a GPU, where they are not there yet."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    from flows.server import GPU

    with get_client(sync_client=True) as client:
        for make in (
            lambda: client.create_work_pool(WorkPoolCreate(name=POOL, type="process")),
            lambda: client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1)),
        ):
            try:
                make()
            except ObjectAlreadyExists:
                continue


def _deploy(root: Path) -> None:
    lines: deque[str] = deque(maxlen=10)
    commands = Commands()
    try:
        code = commands.run([*_PREFECT, "--no-prompt", "deploy", "--all"], lines.append, root)
    finally:
        commands.stop()
    if code != 0:
        raise ConfigError(f"prefect.yaml cannot be deployed: {' '.join(' '.join(lines).split())}")


def _check(port: int, root: Path) -> None:
    if not (root / "prefect.yaml").is_file():
        raise ConfigError(f"prefect.yaml is not in {root}: run this in the root of the repository")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no reason
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {HOST} cannot be used ({error.strerror}): end what listens there (an earlier "
                "`make prefect`?), or name another with --port"
            ) from None


def _wait_until_healthy(url: str, server: Part) -> None:
    deadline = time.monotonic() + _STARTS
    while time.monotonic() < deadline and server.is_alive():
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TransientError(f"the Prefect server does not answer at {url}: {_why(server)}")


def _why(part: Part) -> str:
    last = " ".join(" ".join(part.lines).split())[-300:]
    return f"{last or 'it printed nothing'} (see {part.log})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=4200, help=f"of the server, on {HOST}")
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(port, project_root(), lambda line: print(line, flush=True))
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped: the server, the worker and its runs have ended", file=sys.stderr)


if __name__ == "__main__":
    main()
