"""Whether a served drafter is accepted less than it promised: one test over all readings, valid after each of them.

A reading is a number in [0, 1]: accepted over drafted tokens between two looks at a server's counters. Somebody bets
at every reading that it falls below `floor`, with a stake that depends on the readings before alone:

    wealth_n = product over i <= n of (1 + stake_i (floor - reading_i))

As long as readings are at least `floor` on average, given those before, wealth does not grow on average, and however
often one looks the chance that it ever reaches 1 / false_alarms is at most `false_alarms` (Ville's inequality;
Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting"). No model of the traffic is
needed, and no plan of how often one looks. The stake is the one that would have grown fastest on the last
readings, so that a drop after a long good time is seen as soon as one at the beginning.
"""

import math
from dataclasses import dataclass, replace

_PRIOR = 0.05  # a reading's variance before there is any: stakes begin small
_MEMORY = 0.9  # weight of what came before in mean and variance: about the last ten readings count
_MOST = 0.75  # of the stake that a single reading of 1 would ruin


@dataclass(frozen=True)
class Drift:
    """The test's whole state; a watch that starts again goes on from it. floor: in (0, 1). mean, variance: of the
    last readings, None before the first. log_wealth: now, and the highest so far: an alarm stays one."""

    floor: float
    false_alarms: float = 0.01
    readings: int = 0
    mean: float | None = None
    variance: float = _PRIOR
    log_wealth: float = 0.0
    highest: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.floor < 1 and 0 < self.false_alarms < 1):
            raise ValueError(f"floor {self.floor} and false_alarms {self.false_alarms} must lie between 0 and 1")

    def read(self, reading: float) -> "Drift":
        """The state behind one more reading. Raises ValueError outside of [0, 1]."""
        if not 0 <= reading <= 1:
            raise ValueError(f"a reading of {reading} is no share of drafted tokens")
        mean = self.floor if self.mean is None else self.mean
        apart = reading - mean
        log_wealth = self.log_wealth + math.log1p(self._stake(mean) * (self.floor - reading))
        return replace(
            self,
            readings=self.readings + 1,
            mean=mean + (1 - _MEMORY) * apart,
            variance=_MEMORY * (self.variance + (1 - _MEMORY) * apart**2),
            log_wealth=log_wealth,
            highest=max(self.highest, log_wealth),
        )

    @property
    def alarm(self) -> bool:
        return self.highest >= -math.log(self.false_alarms)

    @property
    def evidence(self) -> float:
        """What there is now of what an alarm needs, 0 to 1, by the logarithms of the wealth."""
        return min(1.0, max(0.0, self.log_wealth) / -math.log(self.false_alarms))

    def _stake(self, mean: float) -> float:
        """Never below 0: readings above the floor are no drop."""
        gap = self.floor - mean
        return min(max(0.0, gap / (self.variance + gap**2)), _MOST / (1 - self.floor))
