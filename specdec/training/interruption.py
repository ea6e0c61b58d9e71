"""Ctrl-C and SIGTERM while a training runs: it ends behind the step it is in, with a checkpoint.

The first signal asks for that. A second one does what the signal did before: it ends the training at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch
from transformers import TrainerCallback

from specdec.errors import LAUNCHER
from specdec.training.processes import state as this_process
from specdec.training.processes import sum_over_processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0  # seconds: a terminal or a flow tells each process, and so does the one that started it


class Interruption:
    """In `with`, the first signal calls `on_first` (in the handler) and is kept; a second one ends the block."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._previous: dict[int, Any] = {}
        self._number: int | None = None
        self._since = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._take) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    @property
    def told(self) -> bool:
        return self._number is not None

    def end(self) -> None:
        """What the signal did before: as a rule, it raises."""
        self.__exit__()
        try:
            signal.raise_signal(self._number or signal.SIGTERM)  # none: another process was told
        finally:
            if LAUNCHER in os.environ:  # which ends the others as soon as the first is gone: they are on their way
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if not self.told:
            self._number, self._since = number, time.monotonic()
            self._on_first()
        elif time.monotonic() - self._since > _SAME:
            self.end()


class EndWhenTold(TrainerCallback):
    """Ends all processes behind the same step. It stands behind the callback that marks checkpoints as complete."""

    def __init__(self, interruption: Interruption, say: Callable[[str], None]) -> None:
        self._interruption, self._say = interruption, say

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        if self._any_told():
            control.should_save = True

    def on_save(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._any_told() or control.should_training_stop:  # one that ends anyway is marked as finished first
            return
        this_process().wait_for_everyone()  # the mark is written
        self._say(f"step {state.global_step}: ended as told, with a checkpoint")
        self._interruption.end()

    def end_if_told(self) -> None:
        """Where no step follows."""
        if self._any_told():
            self._interruption.end()

    def _any_told(self) -> bool:
        return bool(sum_over_processes(torch.tensor(int(self._interruption.told))))


def tell_first() -> None:
    """What a person is told at once. Not printed: a handler may have interrupted printing."""
    begin = "\n" if os.isatty(2) else ""  # behind the terminal's ^C
    told = "told to end: training ends behind its step, with a checkpoint; once more ends it at once"
    os.write(2, f"{begin}specdec: {told}\n".encode())
