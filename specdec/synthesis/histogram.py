"""Percentiles of any number of positive values in constant memory."""

import math
from collections import Counter

RESOLUTION = 1.01  # each bucket is 1 % wider than the one before, so a percentile is right within 1 %


class Histogram:
    """Counts by the logarithm of the value. Values at or below a microsecond are one bucket."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Counts one value."""
        self._counts[math.ceil(math.log(max(value, 1e-6), RESOLUTION))] += 1

    def __len__(self) -> int:
        return self._counts.total()

    def percentiles(self, wanted: tuple[int, ...] = (50, 90, 99)) -> dict[str, float] | None:
        """Nearest-rank percentiles by name (`p50`), right within 1 %; None of nothing."""
        if not self._counts:
            return None
        return {f"p{p}": round(self._at(p), 4) for p in wanted}

    def _at(self, percent: int) -> float:
        rank, passed = len(self) * percent / 100, 0
        for bucket in sorted(self._counts):
            passed += self._counts[bucket]
            if passed >= rank:
                break
        return float(RESOLUTION ** (bucket - 0.5))
