"""What speedup to expect of a setting, from measured times and acceptance rates: arithmetic, nothing is run.

A step of plain decoding is one pass of the base over one token. A step with a drafter that has N tokens verified is
the drafting, one pass over 1 + N tokens, and what else it costs; it emits AL tokens on average (as in Leviathan et
al. 2023, arXiv:2211.17192). At batch size b:

    speedup = AL * base(1, b) / (draft(k, b) + base(1 + N, b) + overhead)

Rates: rank_rates[depth][rank] is the chance that the base's token at this depth is the drafter's rank-th choice
(from 0), given that the path above was right. A chain follows rank 0: its rates are the evaluation's conditional
rates. A static tree (Cai et al. 2024, arXiv:2401.10774) is a set of paths of ranks, a node for each; children of one
node are different tokens, so the chances of nodes add up. Rates are taken to be the same behind all nodes of a level.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from specdec.errors import DataError

Path = tuple[int, ...]  # the rank of the choice at each depth
RankRates = Sequence[Sequence[float]]

_ROUNDING = 1e-9  # by which rates of one depth may add up to more than 1


@dataclass(frozen=True)
class StepTimes:
    """Measured seconds. base[b][n]: a pass over n tokens of each of b sequences behind `context` tokens. draft[k]: a
    chain of k tokens for one sequence. overhead: of a step that drafts, beside both, at any batch size.

    A drafter was timed on one sequence. For more its time is taken to grow as the base's one-token pass does: an
    assumption, good where both are bound by reading weights, and the weaker the less the drafter looks like the base.
    """

    base: Mapping[int, Mapping[int, float]]
    draft: Mapping[int, float]
    context: int
    overhead: float = 0.0

    def base_seconds(self, tokens: int, batch_size: int) -> float:
        """One pass; linear between what was measured. Raises DataError outside of it."""
        return sum(
            weight * share * self.base[size][count]
            for size, weight in _around(self.base, batch_size, "a batch size of")
            for count, share in _around(self.base[size], tokens, "a pass of the base over a number of tokens of")
        )

    def draft_seconds(self, length: int, batch_size: int) -> float:
        """A chain of `length` for each sequence; 0 for none. Raises DataError outside of what was measured."""
        if length == 0:
            return 0.0
        alone = sum(share * self.draft[k] for k, share in _around(self.draft, length, "drafting a chain of"))
        return alone * self.base_seconds(1, batch_size) / self.base_seconds(1, 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, whose keys are strings."""
        return {
            "base": {str(size): _by_name(row) for size, row in self.base.items()},
            "draft": _by_name(self.draft),
            "context": self.context,
            "overhead": self.overhead,
        }


@dataclass(frozen=True)
class Setting:
    """What is drafted in a step: paths of ranks, a node each. See `chain` and `static_tree`."""

    name: str
    paths: tuple[Path, ...]

    @property
    def tokens(self) -> int:
        """N: draft tokens that the base verifies."""
        return len(self.paths)

    @property
    def depth(self) -> int:
        """The longest path, which is what the drafting is timed by: a chain as long."""
        return max(map(len, self.paths), default=0)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "depth": self.depth, "tokens": self.tokens}


@dataclass(frozen=True)
class Predicted:
    """acceptance_length: tokens a step and sequence, the base's own included. speedup: over plain decoding."""

    setting: Setting
    batch_size: int
    acceptance_length: float
    speedup: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "setting": self.setting.as_dict(),
            "batch_size": self.batch_size,
            "acceptance_length": self.acceptance_length,
            "speedup": self.speedup,
        }


def chain(length: int) -> Setting:
    """The drafter's first choice at each of `length` positions; 0 is plain decoding."""
    if length < 0:
        raise DataError(f"a chain of {length} tokens cannot be drafted: 0 (plain decoding) is the shortest")
    return Setting(f"chain of {length}", tuple((0,) * depth for depth in range(1, length + 1)))


def static_tree(name: str, paths: Iterable[Sequence[int]]) -> Setting:
    """A tree of these paths of ranks. Raises DataError when they are none: a path twice, or without the one above."""
    nodes = [tuple(path) for path in paths]
    known = {(), *nodes}
    if len(known) != len(nodes) + 1:
        raise DataError(f"tree {name!r} has a path twice, or an empty one: each node is one path of ranks")
    for path in nodes:
        if path[:-1] not in known:
            raise DataError(f"tree {name!r} has node {list(path)} without {list(path[:-1])} above it: add that one")
        if min(path) < 0:
            raise DataError(f"tree {name!r} has node {list(path)}: ranks count from 0")
    return Setting(name, tuple(nodes))


def acceptance_length(rank_rates: RankRates, setting: Setting) -> float:
    """1 + the sum over nodes of the product of the rates along the path.

    Raises DataError for rates that are no chances, and for a node whose depth or rank has no rate.
    """
    for depth, rates in enumerate(rank_rates):
        if any(not 0 <= rate <= 1 for rate in rates) or sum(rates) > 1 + _ROUNDING:
            raise DataError(f"the rates at depth {depth} are no chances of different tokens: {list(rates)}")
    return 1 + sum(prod(_rates_along(rank_rates, path, setting.name)) for path in setting.paths)


def predict(times: StepTimes, rank_rates: RankRates, setting: Setting, batch_size: int) -> Predicted:
    """Raises DataError where a time or a rate that the setting needs was not measured."""
    length = acceptance_length(rank_rates, setting)
    seconds = times.base_seconds(1 + setting.tokens, batch_size)
    if setting.tokens:
        seconds += times.draft_seconds(setting.depth, batch_size) + times.overhead
    return Predicted(setting, batch_size, length, length * times.base_seconds(1, batch_size) / seconds)


def best_settings(
    times: StepTimes, rank_rates: RankRates, settings: Iterable[Setting], batch_sizes: Iterable[int]
) -> dict[int, Predicted]:
    """The fastest for each batch size; of equals the one that drafts least. Plain decoding competes too."""
    candidates = sorted([chain(0), *settings], key=lambda setting: setting.tokens)
    return {
        size: max((predict(times, rank_rates, setting, size) for setting in candidates), key=lambda p: p.speedup)
        for size in batch_sizes
    }


def overhead_of(step_seconds: float, times: StepTimes, setting: Setting, batch_size: int = 1) -> float:
    """What a measured step (seconds of decoding over steps) took beyond drafting and the base's pass; 0 at least."""
    known = times.draft_seconds(setting.depth, batch_size) + times.base_seconds(1 + setting.tokens, batch_size)
    return max(0.0, step_seconds - known)


def relative_distance(predicted: float, measured: float) -> float:
    """|predicted - measured| / measured. Raises DataError unless the measurement is above 0."""
    if not measured > 0:
        raise DataError(f"a prediction cannot be compared with a measurement of {measured}: it must be above 0")
    return abs(predicted - measured) / measured


def _rates_along(rank_rates: RankRates, path: Path, name: str) -> list[float]:
    for depth, rank in enumerate(path):
        if depth >= len(rank_rates) or rank >= len(rank_rates[depth]):
            raise DataError(f"{name}: there is no rate for rank {rank} at depth {depth} (both from 0): measure it")
    return [rank_rates[depth][rank] for depth, rank in enumerate(path)]


def _around(known: Collection[int], at: int, what: str) -> list[tuple[int, float]]:
    """The measured points next to `at`, with their shares; that one alone where it was measured itself."""
    if at in known:
        return [(at, 1.0)]
    below, above = max((x for x in known if x < at), default=None), min((x for x in known if x > at), default=None)
    if below is None or above is None:
        ends = f"{min(known)} to {max(known)} were" if known else "none was"
        raise DataError(f"{what} {at} was not measured ({ends}), and is not guessed: measure it too")
    share = (at - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def _by_name(row: Mapping[int, float]) -> dict[str, float]:
    return {str(count): seconds for count, seconds in row.items()}
