"""The key, right or wrong, is in the header of the requests and nowhere else."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import SpecdecError
from specdec.synthesis import Endpoint, probe
from specdec.synthesis.client import Client, Patience
from tests.settings import sampling
from tests.synthesis.scripted import KEY

WRONG = "sk-wrong-7788aa"
PLANS = ("ok", "echo", "401", "403", "400", "500", "reset", "garbage", "html", "truncated", "hang", "surrogate")


def chain(error: BaseException) -> list[BaseException]:
    """An error and all that it comes from, also what `from None` hides. Errors of a group may go round in circles."""
    found, left = list[BaseException](), [error]
    while left:
        one = left.pop()
        if one not in found:
            found.append(one)
            inside = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
            left += [e for e in (one.__cause__, one.__context__, *inside) if e]
    return found


def texts(error: BaseException) -> str:
    told = [f"{e} {e!r} {e.args}" for e in chain(error)]
    return "\n".join([*told, *traceback.format_exception(error)])


@pytest.mark.parametrize("key", [KEY, WRONG])
@pytest.mark.parametrize("action", PLANS)
def test_it_is_in_nothing_that_a_run_leaves(
    action: str, key: str, scripted: Any, go: Any, prompts: Any, journal_folder: Path, hasty: Patience
) -> None:
    server = scripted(lambda _last, n: "ok" if n % 2 and not action.startswith("4") else action)
    said: list[str] = []
    left = ""
    try:
        statistics, out = go(server, prompts(4), key=key, say=said.append, patience=hasty)
        left = json.dumps([statistics.figures(), out]) + repr(statistics) + "\n".join(statistics.last_lines())
    except SpecdecError as error:
        left = texts(error)
    assert left
    journal = "".join(file.read_text() for file in journal_folder.iterdir())
    for secret in (KEY, WRONG):
        assert secret not in journal + "\n".join(said) + left
        assert secret not in repr(server.bodies)
    if key == KEY and action == "echo":
        assert "authorization Bearer ***" in journal, "what the server said is kept, without the key"


@pytest.mark.parametrize("action", PLANS)
def test_it_is_in_no_error_of_the_probe(action: str, scripted: Any, endpoint: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["specdec.synthesis.probe"], "PROBE_SECONDS", 0.2)
    for key in (KEY, WRONG):
        there: Endpoint = endpoint(scripted(lambda _last, _n: action), key)
        told = repr(Client(there, Patience()))
        try:
            told += repr(probe(there, {"top_k": -1}, sampling(0.5)))
        except SpecdecError as error:
            told += texts(error)
        assert key not in told + repr(there) + str(there)
