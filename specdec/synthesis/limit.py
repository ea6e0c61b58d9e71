"""How many requests are in flight to one server: found by trying, since no server says how many it likes.

A batching server's throughput rises with the requests in flight up to a knee, and stays flat behind it while every
request just waits longer. So we double the number as long as throughput (answer tokens a second) rises with it, then
halve it as long as it does not fall, and settle at the lowest number that had it. From there we look around now and
then, since prompts and neighbours change. Overload (429, 503, a timeout) steps down at once.

Throughput is measured over a window: after a change, as many answers as requests are in flight are let pass (they
were begun under the old number), and then twice as many are counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

START, MOST = 32, 1024
GAIN = 1.1  # a doubling must bring this much, or it only makes requests wait; and a halving must not lose it
BETTER, AS_GOOD = 1.05, 0.97  # looking around: worth more requests; not lost by fewer
SLUMP = 0.7  # of the settled throughput: latency says that the server has less to give
STEP_DOWN = 0.7
HOLD = 8  # windows between two looks around
LEAST_SECONDS = 1.0  # of a window


@dataclass
class _Window:
    """Answers since the number changed. `skip`: those still to pass before counting. `lowered`: by an overload."""

    skip: int
    wanted: int
    lowered: bool = False
    tokens: int = 0
    answers: int = 0
    began: float | None = None


class Limit:
    """The number of requests in flight to one server: `value`, at most `most`.

    Told of every answer and every overload; knows nothing of requests. It begins with `start`, halved so many times.
    fixed: `most` is what is wanted, and only overload lowers it for a while. `clock` gives seconds.
    """

    def __init__(
        self,
        start: int = START,
        most: int = MOST,
        halved: int = 0,
        fixed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed, self._clock = fixed, clock
        self.most = max(1, most)
        begin = max(1, min(start, most))
        self.value = max(1, begin >> halved)
        self._again = begin if halved else 0  # after an overload or a halved start: up to here in quick steps
        self._searching, self._halving = not fixed, False
        self._settled, self._settled_throughput = self.value, 0.0
        self._held, self._upwards = 0, True
        self._open(3 * self.value)  # requests that begin together end together, until they have mixed

    def answered(self, tokens: int, saturated: bool) -> None:
        """One answer has come. saturated: all `value` requests were in flight, so that it says something."""
        window = self._window
        if window.skip > 0:
            window.skip -= 1
            return
        if not saturated:
            self._open(self.value)
            return
        now = self._clock()
        if window.began is None:
            window.began = now
            return
        window.tokens, window.answers = window.tokens + tokens, window.answers + 1
        if window.answers >= window.wanted and now - window.began >= LEAST_SECONDS:
            self._decide(window.tokens / (now - window.began))

    def overloaded(self) -> None:
        """The server has refused for want of room, or did not answer in time."""
        if self._window.lowered and self._window.skip > 0:  # this request was begun under the old number
            self._window.skip -= 1
            return
        lower = max(1, int(self.value * STEP_DOWN))
        if not self._window.lowered:  # else a storm: what it was before tells more than what is left
            self._again = lower
        self._settle(lower, 0.0)
        self._window.lowered = True

    def _decide(self, throughput: float) -> None:
        if self.value < self._again:
            self._settled = min(self._again, self.value * 2)
            self._again = self._again if self._settled < self._again else 0
            self._move(self._settled)
        elif self._fixed:
            self._move(self._more())
        elif self._searching:
            self._search(throughput)
        elif self.value != self._settled:
            self._looked(throughput)
        else:
            self._hold(throughput)

    def _search(self, throughput: float) -> None:
        """Doubles while that brings something, then halves while that loses little."""
        best = self._settled_throughput
        if throughput >= (best / GAIN if self._halving else best * GAIN):
            self._settled = self.value
        elif self._halving:
            self._settle(self._settled, best)
            return
        if not self._halving:
            self._halving = self._settled < self.value or self._settled == self.most
            self._settled_throughput = max(best, throughput)
        following = self._settled // 2 if self._halving else min(self.most, self._settled * 2)
        if following:
            self._move(following)
        else:
            self._settle(self._settled, self._settled_throughput)

    def _looked(self, throughput: float) -> None:
        needed = BETTER if self.value > self._settled else AS_GOOD
        if throughput >= needed * self._settled_throughput:
            self._settle(self.value, throughput)
        else:
            self._upwards = not self._upwards
            self._settle(self._settled, self._settled_throughput)

    def _hold(self, throughput: float) -> None:
        slump = throughput < SLUMP * self._settled_throughput
        self._held += 1
        # A new reference follows slowly: one noisy window must not move it far.
        old = self._settled_throughput or throughput
        self._settled_throughput = throughput if slump else 0.7 * old + 0.3 * throughput
        if slump or self._held >= HOLD:
            self._held = 0
            up = self._upwards and not slump and self.value < self.most
            self._move(self._more() if up else max(1, int(self.value * 0.75)))
        else:
            self._open(0)

    def _settle(self, value: int, throughput: float) -> None:
        self._searching, self._held = False, 0
        self._settled, self._settled_throughput = value, throughput
        self._move(value)

    def _more(self) -> int:
        return min(self.most, self.value + max(1, self.value // 3))

    def _move(self, value: int) -> None:
        before, self.value = self.value, value
        self._open(max(before, value))

    def _open(self, skip: int) -> None:
        self._window = _Window(skip, self.value if self.value < self._again else max(2 * self.value, 32))
