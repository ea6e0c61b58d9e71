"""Waiting for a server that a test has started."""

import subprocess
import time

import httpx


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", seconds: float = 90) -> None:
    """Until `url`/health answers; fails when the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server of {url} ended with {process.returncode}"
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the server of {url} did not start")
