"""`specdec check`: the settings of this folder, or a drafter's folder against its base."""

from dataclasses import dataclass
from pathlib import Path

from specdec.drafters.deployable.folder import base_facts, check_folder


@dataclass(frozen=True)
class Checked:
    """findings: one line each. summary: one line, for when there are none."""

    findings: list[str]
    summary: str


def check_drafter(drafter: Path, base: Path) -> Checked:
    """Raises ModelError where one of the folders is none."""
    facts = base_facts(base)
    found = check_folder(drafter, facts)
    known = "" if facts.identity else f" ({base} holds no weights: whether it was trained on these was not compared)"
    return Checked(found, f"{drafter} is what vLLM serves for {base}{known}")
