"""The flow that asks a person, against a real Prefect server and a real registry."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from specdec.tracking.promotion import aliases_of
from specdec.tracking.register import register
from specdec.tracking.release import promote_by_hand
from specdec.tracking.store import connect
from tests.flows.conftest import Toy
from tests.tracking.example import (
    params,
    register_settings,
    write_drafter,
    write_figures,
    write_results,
    write_settings,
)

NAME = "specdec-base"
ASKING = register_settings(promote="approval")
PAUSED = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}, "flows": {"name": {"any_": ["promote"]}}}


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """Version 1 is the champion, version 3 waits; version 2 passes the gates, too. Made once: tests copy it."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(prepared, root)
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, root)
        prepare(root)
    return root


@pytest.fixture
def asked(toy: Toy, registered: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A copy of `registered`, whose checkpoints stay where they are. What a failed test leaves waiting is ended."""
    shutil.copytree(registered, toy.root, dirs_exist_ok=True)
    clean(monkeypatch, toy.root)
    yield toy
    for process in psutil.Process().children():
        if "flows.promote" in process.cmdline():
            process.kill()
    for run in api(toy, "flow_runs/filter", PAUSED):
        httpx.delete(f"{toy.environment['PREFECT_API_URL']}/flow_runs/{run['id']}", timeout=30)


def clean(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SPECDEC_EXECUTION", "DVC_ROOT"):
        patch.delenv(name, raising=False)
    patch.chdir(root)


def prepare(root: Path) -> None:
    write_results(root)
    write_settings(root, register=ASKING)
    register(params(), silent)
    write_drafter(root, "one", weights="third")
    write_figures(root, "one", speedup=1.8)
    register(params(register=ASKING), silent)
    assert aliases(root) == {"champion": "1", "challenger": "3"}


def aliases(root: Path) -> dict[str, str]:
    return aliases_of(connect(root), NAME)


def tag(root: Path, version: str) -> str:
    found = connect(root).client.get_model_version(NAME, version).tags
    return str(found.get("specdec.gate.approval", ""))


def start(toy: Toy, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "flows.promote", *arguments],
        cwd=toy.root,
        env=toy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def api(toy: Toy, path: str, content: Any = None) -> Any:
    """Once more where the server's database was busy (503)."""
    for _ in range(20):
        answer = httpx.post(f"{toy.environment['PREFECT_API_URL']}/{path}", json=content or {}, timeout=30)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def waiting_runs(toy: Toy, wanted: int = 1) -> list[dict[str, Any]]:
    """The runs that wait for an answer, once there are so many of them."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = api(toy, "flow_runs/filter", PAUSED)
        if len(found) == wanted:
            return list(found)
        time.sleep(0.2)
    raise AssertionError(f"not {wanted} runs wait: {found}")


def answer(toy: Toy, run: dict[str, Any], **said: Any) -> Any:
    return api(toy, f"flow_runs/{run['id']}/resume", {"run_input": said})


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


@pytest.mark.soak
def test_of_two_that_say_yes_one_wins_and_the_other_is_told_why_not(asked: Toy) -> None:
    processes = [start(asked), start(asked)]
    runs = waiting_runs(asked, 2)
    keyset = runs[0]["state"]["state_details"]["run_input_keyset"]
    url = asked.environment["PREFECT_API_URL"]
    shown = httpx.get(f"{url}/flow_runs/{runs[0]['id']}/input/{keyset['description']}").json()
    assert "| speedup (times plain decoding) | 1.800 [1.700, 1.900] | 1.300 [1.200, 1.400] |" in shown
    artifacts = api(asked, "artifacts/filter", {"artifacts": {"key": {"any_": ["waits-for-approval"]}}})
    assert any("- speedup: passed: speedup 1.700 (needs 1.000)" in a["data"] for a in artifacts)
    refused = answer(asked, runs[0], approve="perhaps", by="Anna")
    assert refused["status"] == "REJECT"
    promote_by_hand(asked.root, "2", True, silent)  # overtakes both
    answer(asked, runs[0], approve=True, by="Anna", why="faster")
    answer(asked, runs[1], approve=False, by="Bert", why="not on a Friday")
    outputs = sorted((ended(p) for p in processes), reverse=True)
    assert [code for code, _ in outputs] == [2, 0], outputs
    last = outputs[0][1].splitlines()[-1]
    assert last.startswith(
        "specdec: error: version 3 of specdec-base is not promoted: it was approved beside version 1"
    )
    assert "and the champion is version 2 by now" in last
    assert "Traceback" not in outputs[0][1]
    assert "version 3 of specdec-base is refused: refused by Bert" in outputs[1][1]
    assert aliases(asked.root)["champion"] == "2"
    assert tag(asked.root, "3").endswith(": not on a Friday")


def test_yes_promotes_and_tells_who_serves(asked: Toy) -> None:
    process = start(asked, "3")
    (run,) = waiting_runs(asked)
    answer(asked, run, approve=True, by="Anna", why="faster")
    code, output = ended(process)
    assert code == 0, output
    assert aliases(asked.root) == {"champion": "3", "previous": "1"}
    assert tag(asked.root, "3").startswith("passed: approved by Anna (")
    assert "announced specdec.champion.changed: version 3 of specdec-base, by Anna" in output
    (event,) = events(asked, by="Anna")
    assert event["resource"]["prefect.resource.id"] == f"specdec.model.{NAME}"
    assert event["payload"] == {"model": NAME, "version": "3", "previous": None, "by": "Anna"}


def events(toy: Toy, by: str) -> list[dict[str, Any]]:
    """Those that tell of a champion that `by` has made."""
    wanted = {"filter": {"event": {"name": ["specdec.champion.changed"]}}}
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while not found and time.monotonic() < deadline:  # the server writes them in batches
        found = [e for e in api(toy, "events/filter", wanted)["events"] if e["payload"]["by"] == by]
        time.sleep(0.2)
    return found


def test_nobody_answers(asked: Toy) -> None:
    code, output = ended(start(asked, "--hours", "0.001"))
    assert code == 75, output
    assert output.splitlines()[-1] == "specdec: error: nobody answered within 4 s: version 3 still waits"
    assert aliases(asked.root) == {"champion": "1", "challenger": "3"}


@pytest.mark.soak
def test_without_a_server_it_says_what_a_person_does(asked: Toy) -> None:
    code, output = ended(start(asked.without_server()))
    assert code == 0, output
    assert "| | version 3 | version 1 (champion) |" in output
    assert output.splitlines()[-1].endswith("`specdec promote 3` makes it the champion")
    promote_by_hand(asked.root, "3", False, silent)
    assert ended(start(asked.without_server())) == (0, "no version waits for approval\n")


def pipeline(toy: Toy) -> str:
    """A run that finds a stage to do, over the registry that is there."""
    (toy.root / "order").unlink(missing_ok=True)
    toy.stages(last={"cmd": f"echo {time.time()} > order && echo done > last.txt", "outs": ["last.txt"]})
    code, output = toy.run()
    assert code == 0, output
    return output


@pytest.mark.soak
def test_a_pipeline_ends_with_the_question(asked: Toy) -> None:
    output = pipeline(asked)
    assert (
        "version 3 waits for approval: `specdec promote 3` makes it the champion; `python -m flows.promote`" in output
    )
    assert "announced specdec.champion.changed: version 1 of specdec-base, by the gates" in output
    process = start(asked)
    (run,) = waiting_runs(asked)
    assert "a run of the flow promote asks already" in pipeline(asked)
    answer(asked, run, approve=False, by="Anna")
    assert ended(process)[0] == 0


@pytest.mark.soak
def test_a_pipeline_with_a_temporary_server_does_not_hang(asked: Toy) -> None:
    output = pipeline(asked.without_server())
    assert "version 3 waits for approval: `specdec promote 3` makes it the champion (no Prefect server" in output


@pytest.mark.soak
def test_what_was_done_by_hand_is_announced(asked: Toy) -> None:
    environment = asked.environment
    command = [sys.executable, "-m", "flows.announce"]
    alone = {k: v for k, v in environment.items() if k != "PREFECT_API_URL"}
    done = subprocess.run(command, cwd=asked.root, env=alone, capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr.startswith("specdec: error: no Prefect server to tell: set PREFECT_API_URL")
    for expected in (True, False):
        done = subprocess.run(command, cwd=asked.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("announced specdec.champion.changed: version 1" in done.stderr) is expected
