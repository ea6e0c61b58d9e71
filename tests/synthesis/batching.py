"""A batching server on a virtual clock: all requests in flight share its throughput evenly."""

import heapq
import random
from collections.abc import Callable

from specdec.synthesis.limit import Limit

TOKENS = 200.0  # of the mean answer


class Batching:
    """throughput: tokens a second by requests in flight. full: above it a request is refused (429). noise: of it."""

    def __init__(
        self, throughput: Callable[[int], float], noise: float = 0.0, full: int = 10**9, seed: int = 0
    ) -> None:
        self.throughput, self.noise, self.full = throughput, noise, full
        self.now, self.served, self.refused = 0.0, 0.0, 0
        self._each = 0.0  # tokens that a request which is here since the beginning has got
        self._ends: list[tuple[float, float]] = []  # (`_each` at which it ends, its tokens)
        self._draw = random.Random(seed)

    def drive(self, limit: Limit, seconds: float, saturated: bool = True) -> float:
        """Keeps as many requests in flight as the limit says, for so long; returns tokens a second."""
        began, served = self.now, self.served
        while self.now - began < seconds:
            self._refill(limit)
            self._finish_one(limit, saturated)
        return (self.served - served) / (self.now - began)

    def _refill(self, limit: Limit) -> None:
        while len(self._ends) < limit.value:
            if len(self._ends) >= self.full:
                self.refused += 1
                limit.overloaded()
                return
            tokens = TOKENS * self._draw.uniform(0.5, 1.5)
            heapq.heappush(self._ends, (self._each + tokens, tokens))

    def _finish_one(self, limit: Limit, saturated: bool) -> None:
        at, tokens = heapq.heappop(self._ends)
        count = len(self._ends) + 1
        speed = self.throughput(count) * (1 + self.noise * self._draw.uniform(-1, 1))
        self.now += (at - self._each) * count / speed
        self._each, self.served = at, self.served + tokens
        limit.answered(int(tokens), saturated)


def knee(at: int, speed: float = 20.0, falling: float = 0.0) -> Callable[[int], float]:
    """Each request gets `speed` up to `at` in flight; behind it they share, and lose `falling` by a doubling."""
    return lambda count: speed * min(count, at) / (1 + falling * max(0.0, count / at - 1))
