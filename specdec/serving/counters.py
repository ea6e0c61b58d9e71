"""What a vLLM has counted since it started: its `/metrics`, as far as drafting goes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from specdec.errors import ServerError

_LINE = re.compile(r"(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \d+)?")
_POSITION = re.compile(r'position="(\d+)"')
_SECONDS = 10.0


@dataclass(frozen=True)
class Counters:
    """drafts: steps that verified a draft. drafted, accepted: tokens. accepted_at[K]: steps that accepted draft
    position i. generated: tokens of all answers. All only grow, until the server starts anew."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: tuple[int, ...] = ()
    generated: int = 0

    def __sub__(self, earlier: "Counters") -> "Counters":
        """What came in between. Raises ValueError when a counter has fallen: the server is another one now."""
        before = earlier.accepted_at + (0,) * (len(self.accepted_at) - len(earlier.accepted_at))
        found = Counters(
            self.drafts - earlier.drafts,
            self.drafted - earlier.drafted,
            self.accepted - earlier.accepted,
            tuple(a - b for a, b in zip(self.accepted_at, before, strict=False)),
            self.generated - earlier.generated,
        )
        fallen = min(found.drafts, found.drafted, found.accepted, found.generated, *found.accepted_at)
        if fallen < 0 or len(before) > len(self.accepted_at):
            raise ValueError("a counter has fallen: the server has started anew")
        return found

    def __add__(self, other: "Counters") -> "Counters":
        width = max(len(self.accepted_at), len(other.accepted_at))
        mine, theirs = (c.accepted_at + (0,) * (width - len(c.accepted_at)) for c in (self, other))
        return Counters(
            self.drafts + other.drafts,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            tuple(a + b for a, b in zip(mine, theirs, strict=True)),
            self.generated + other.generated,
        )

    @property
    def acceptance_length(self) -> float:
        """Tokens a step, as vLLM counts it: 1 + accepted / drafts."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def position_rates(self) -> list[float]:
        return [at / self.drafts for at in self.accepted_at] if self.drafts else []


def read_counters(url: str) -> Counters:
    """Of the server at `url`; the path needs no key. Raises ServerError where none answers."""
    try:
        response = httpx.get(f"{url}/metrics", timeout=_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise ServerError(f"no server answers at {url}/metrics: {str(error) or type(error).__name__}") from None
    if response.status_code != 200:
        raise ServerError(f"{url}/metrics answers with HTTP {response.status_code}: is it a vLLM server?")
    return parse_counters(response.text)


def parse_counters(text: str) -> Counters:
    """From the text format of Prometheus; engines of a server with several (data parallel) are added up."""
    sums: dict[str, float] = {}
    at: dict[int, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or not (found := _LINE.fullmatch(line.strip())):
            continue
        name, value = found["name"], float(found["value"])
        if name == "vllm:spec_decode_num_accepted_tokens_per_pos_total":
            if place := _POSITION.search(found["labels"] or ""):
                at[int(place[1])] = at.get(int(place[1]), 0.0) + value
        else:
            sums[name] = sums.get(name, 0.0) + value
    return _counters(sums, at)


def _counters(sums: Mapping[str, float], at: Mapping[int, float]) -> Counters:
    def count(name: str) -> int:
        return int(sums.get(f"vllm:{name}_total", 0.0))

    positions = tuple(int(at.get(i, 0.0)) for i in range(max(at, default=-1) + 1))
    return Counters(
        count("spec_decode_num_drafts"),
        count("spec_decode_num_draft_tokens"),
        count("spec_decode_num_accepted_tokens"),
        positions,
        count("generation_tokens"),
    )
