"""What only a Prefect server that stays can do: wait for a person, tell others, share a GPU out."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

GPU = "gpu"  # the name of Prefect's global concurrency limit


def server_url() -> str | None:
    """The server's API; None where a flow has a temporary server, which nobody else knows."""
    return os.environ.get("PREFECT_API_URL")


def keep_from_ctrl_c() -> None:
    """Temporary servers of this process get a session of their own, for which Prefect has no setting.

    A terminal sends Ctrl-C to a whole process group, and a flow whose server has gone first cannot report its end.
    """
    if server_url() is not None:
        return
    from prefect.server.api import server  # takes seconds, which a flow with a server of its own need not wait

    theirs = {name: getattr(subprocess, name) for name in subprocess.__all__}
    theirs["Popen"] = partial(subprocess.Popen, start_new_session=True)
    server.subprocess = SimpleNamespace(**theirs)  # type: ignore[assignment]


@contextlib.contextmanager
def a_gpu(log: Callable[[str], None]) -> Iterator[None]:
    """Holds a slot of the limit `gpu` while the block runs, and waits for one; without such a limit it does not wait.

    A run that dies gives its slot back within five minutes.
    """
    if server_url() is None or not _has_limit():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(concurrency(GPU, timeout_seconds=1))
        except TimeoutError:
            log(f"waits for a slot of the concurrency limit {GPU}: another run has it")
            stack.enter_context(concurrency(GPU))
        yield


def _has_limit() -> bool:
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(GPU).active
        except ObjectNotFound:
            return False
