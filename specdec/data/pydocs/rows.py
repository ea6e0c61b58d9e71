"""One conversation as a row of the Daring-Anteater schema, and choices that depend on the content alone."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
Turn = tuple[str, str]  # question, answer

SYSTEM_PROMPTS = (
    "You are a reference for Python. Answer from the documentation.",
    "You explain Python's libraries in short, plain sentences.",
    "You are a careful Python tutor.",
)


def make_row(category: str, turns: list[Turn]) -> Row:
    """A conversation; one of five has a system prompt."""
    key = turns[0][0]
    system = pick(SYSTEM_PROMPTS, key) if draw("system " + key, 5) == 0 else ""
    said = []
    for question, answer in turns:
        said.append({"from": "User", "value": question, "label": None})
        said.append({"from": "Assistant", "value": answer, "label": None})
    return {"system": system, "mask": "User", "dataset": category, "conversations": said}


def draw(key: str, below: int) -> int:
    """A number from 0 to ``below - 1`` that depends on ``key`` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % below


def pick(choices: tuple[str, ...], key: str) -> str:
    """One of ``choices``, by ``key`` alone."""
    return choices[draw(key, len(choices))]


def sampled(rows: Iterable[Row], limit: int) -> list[Row]:
    """At most ``limit`` rows, chosen by their hash: the choice does not depend on where a row stands."""
    return sorted(rows, key=_digest)[:limit]


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
