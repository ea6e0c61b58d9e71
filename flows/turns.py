"""Who may run now: any number of ordinary stages together, or one exclusive stage alone."""

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """A lock for many or for one. While an exclusive stage waits no newcomer passes, so it gets its turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = False
        self._waiting = 0

    @contextlib.contextmanager
    def take(self, exclusive: bool) -> Iterator[None]:
        """Waits for a turn and holds it."""
        with self._changed:
            if exclusive:
                self._waiting += 1
                self._changed.wait_for(lambda: not self._alone and self._together == 0)
                self._waiting -= 1
                self._alone = True
            else:
                self._changed.wait_for(lambda: not self._alone and self._waiting == 0)
                self._together += 1
        try:
            yield
        finally:
            with self._changed:
                if exclusive:
                    self._alone = False
                else:
                    self._together -= 1
                self._changed.notify_all()
