"""A line now and then while something long says nothing itself."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def while_waiting(say: Callable[[str], None], what: str, every: float = 5.0) -> Iterator[None]:
    """Says `what` with the seconds passed, every `every` seconds, until the block ends."""
    done = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not done.wait(every):
            say(f"{what} ({time.monotonic() - began:.0f} s)")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
