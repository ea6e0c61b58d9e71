"""What is measured of a drafter, and under which names."""

from dataclasses import dataclass

from specdec.drafters import Drafter, Sampling, Tree
from specdec.drafters.prompt_lookup import PromptLookup
from specdec.errors import ConfigError
from specdec.evaluation.measure import Way
from specdec.evaluation.summary import Bootstrap

LOOKUP = "prompt lookup"


@dataclass(frozen=True)
class Plan:
    """What is measured. temperatures: 0 is always among them. draft_lengths: chains beside the drafter's own; trees:
    dynamic ones; static_nodes: budgets of static trees, which are searched from the drafter's ranks. ways_prompts: on
    how many of the prompts these are measured; None: all."""

    max_new_tokens: int
    repeats: int
    bootstrap: Bootstrap
    temperatures: tuple[float, ...] = (0.0,)
    draft_lengths: tuple[int, ...] = ()
    trees: tuple[Tree, ...] = ()
    static_nodes: tuple[int, ...] = ()
    ways_prompts: int | None = None

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            Sampling(temperature)  # raises ConfigError where it is none
        if len({_at(t) for t in self.temperatures}) < len(set(self.temperatures)):
            raise ConfigError(f"temperatures {list(self.temperatures)}: some are too close to tell apart")


def plain_way() -> Way:
    """The base alone, greedily."""
    return Way(plain_name(0.0))


def main_way(drafter: Drafter) -> Way:
    """The way that a drafter is reported by: its own chain, greedily."""
    return Way(chain_name(drafter.draft_tokens), drafter, drafter.draft_tokens)


def first_ways(drafter: Drafter) -> list[Way]:
    """No drafter, the main way, prompt lookup: what is measured on all prompts, in this order."""
    return [plain_way(), main_way(drafter), Way(LOOKUP, PromptLookup())]


def chain_name(length: int, temperature: float = 0.0) -> str:
    return f"chain of {length}{_at(temperature)}"


def plain_name(temperature: float) -> str:
    return f"no drafter{_at(temperature)}"


def _at(temperature: float) -> str:
    return f", temperature {temperature:g}" if temperature else ""
