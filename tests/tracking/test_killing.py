"""SIGKILL at moments spread over every write of registering, promoting and going back (`tests.tracking.killing`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.example import REPOSITORY


def run_tries(project: Path, seed: int, tries: int, *only: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(scenario -> its moments, how it begins and ends), and what came of each try."""
    command = [sys.executable, "-m", "tests.tracking.killing", str(project), str(seed), str(tries), *only]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    scenarios = {line["scenario"]: line for line in lines if "ends" in line}
    return scenarios, [line for line in lines if "try" in line]


def check(scenario: dict[str, Any], tried: dict[str, Any]) -> None:
    """What must hold right after the kill, and after the work was done again."""
    told = {key: tried[key] for key in ("scenario", "moment", "half")}
    assert tried["left"] is not None, (told, "the next run failed")
    before, once, left, after = scenario["before"], scenario["ends"][0], tried["left"], tried["after"]
    assert before["versions"].keys() <= left["versions"].keys() <= once["versions"].keys(), told
    assert left["aliases"].get("champion") in (before["aliases"].get("champion"), once["aliases"]["champion"]), told
    for number in left["aliases"].values():
        assert weights(left, number) == weights(once, number), told
    assert left["receipt"] in (before["receipt"], once["receipt"]), told
    assert after in scenario["ends"], (told, differences(after, once))
    assert (after["left"], after["running"], after["moving"]) == ([], 0, None), told


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Where two states differ, and how."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys())
        return [d for k in keys for d in differences(found.get(k), expected.get(k), f"{path}/{k}")]
    return [] if found == expected else [f"{path}: {str(found)[:200]} instead of {str(expected)[:200]}"]


def weights(state: dict[str, Any], number: str) -> dict[str, str]:
    """Hashes of a version's stored checkpoint."""
    return {
        name: digest for name, digest in state["versions"][number]["files"].items() if name.startswith("drafter/")
    }


def check_all(project: Path, seed: int, tries: int, *only: str) -> None:
    scenarios, tried = run_tries(project, seed, tries, *only)
    assert len(tried) == tries
    assert sum(one["killed"] for one in tried) >= tries - 1, "a run may take one write less than the one counted"
    for one in tried:
        check(scenarios[one["scenario"]], one)


@pytest.mark.soak
def test_killed_at_a_few_moments(project: Path) -> None:
    check_all(project, 1, 5, "register a better one", "rollback")


@pytest.mark.soak
def test_killed_at_fifty_moments(project: Path) -> None:
    check_all(project, 2, 50)
