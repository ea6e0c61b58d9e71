"""`make serve-flows`: a real server, worker and the deployments of prefect.yaml, over a toy project."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from specdec.tracking.register import register
from tests.flows.conftest import Toy, make_toy
from tests.flows.test_pipeline import STUBBORN, is_alive, stage, strays, until
from tests.flows.test_promote import ASKING, NAME, aliases, tag
from tests.servers import wait_until_healthy
from tests.tracking.example import REPOSITORY, params, write_drafter, write_figures, write_results, write_settings


def start(toy: Toy, *arguments: str) -> "subprocess.Popen[bytes]":
    with (toy.root / "serve.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.serve", *arguments],
            cwd=toy.root,
            env=toy.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_in_use_and_a_missing_file_are_said_in_one_line(toy: Toy) -> None:
    toy.stages(first=stage("first"))
    process = start(toy)
    assert process.wait(30) == 2
    shutil.copy(REPOSITORY / "prefect.yaml", toy.root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(toy, "--port", str(port))
        assert process.wait(30) == 2
    missing, used = (toy.root / "serve.log").read_text().splitlines()
    assert missing == f"specdec: error: prefect.yaml is not in {toy.root}: run this in the root of the repository"
    assert used.startswith(
        f"specdec: error: port {port} of 127.0.0.1 cannot be used (Address already in use): end what"
    )


@dataclass(frozen=True)
class Served:
    """A project whose flows are served; `idle`: the processes that stand in it while no flow runs."""

    toy: Toy
    process: "subprocess.Popen[bytes]"
    idle: set[psutil.Process]

    def post(self, path: str, content: Any = None) -> Any:
        """Once more where the server's database was busy (503)."""
        for _ in range(20):
            answer = httpx.post(f"{self.toy.environment['PREFECT_API_URL']}/{path}", json=content or {}, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.toy.environment['PREFECT_API_URL']}/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def begin(self, flow: str, **parameters: Any) -> str:
        """Starts a run of a deployment; its id."""
        deployment = self.get(f"deployments/name/{flow}/specdec")["id"]
        run = self.post(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def state(self, run: str) -> tuple[str, str]:
        """(type, message)."""
        state = self.get(f"flow_runs/{run}")["state"]
        return state["type"], state["message"] or ""

    def reaches(self, run: str, state: str) -> str:
        """Waits for a state; its message."""
        assert until(lambda: self.state(run)[0] == state, 150), (self.state(run), self.log(run), self.printed())
        return self.state(run)[1]

    def log(self, run: str) -> str:
        found = self.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(line["message"] for line in found)

    def printed(self) -> str:
        return (self.toy.root / "serve.log").read_text()

    def has_process(self, run: str) -> bool:
        """Whether a process of this flow run is there."""
        for process in strays(self.toy.root):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
                    return True
        return False

    def of_runs(self) -> list[psutil.Process]:
        return [p for p in strays(self.toy.root) if p not in self.idle]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prepared: Path, prefect_home: Path) -> Iterator[Served]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    toy = make_toy(tmp_path_factory.mktemp("served") / "project", prepared, prefect_home, url)
    # A database of its own; a copy of the session's would be in use.
    environment = {k: v for k, v in toy.environment.items() if not k.startswith("PREFECT_")}
    (toy.root / "told").touch()
    said = "sh -c 'echo $SPECDEC_CHAMPION after $SPECDEC_PREVIOUS >> told'"
    toy = replace(toy, environment=environment | {"SPECDEC_ON_CHAMPION": said})
    toy.stages(first=stage("first"))
    shutil.copy(REPOSITORY / "prefect.yaml", toy.root)
    process = start(toy, "--port", str(port))
    toy = replace(toy, environment=environment | {"PREFECT_API_URL": url})
    try:
        wait_until_healthy(url, process, 180)
        workers = "work_pools/specdec/workers/filter"
        assert until(lambda: _answers(url, workers), 120), (toy.root / "serve.log").read_text()
        yield Served(toy, process, set(strays(toy.root)))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _answers(url: str, workers: str) -> bool:
    answer = httpx.post(f"{url}/{workers}", json={}, timeout=30)
    return answer.is_success and any(w["status"] == "ONLINE" for w in answer.json())


@pytest.mark.soak
def test_a_run_is_started_followed_cancelled_and_gone_on_with(served: Served) -> None:
    toy = served.toy
    toy.stages(first=stage("first"), endless=stage("endless", "first", cmd=STUBBORN))
    run = served.begin("pipeline")
    assert until(lambda: toy.lines("beat"), 90), served.printed()
    assert served.of_runs()
    assert until(lambda: "Running stage 'endless'" in served.log(run), 20)
    tasks = served.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert {t["name"]: t["state_type"] for t in tasks} == {"first": "COMPLETED", "endless": "RUNNING"}
    served.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    served.reaches(run, "CANCELLED")
    assert until(lambda: not served.of_runs(), 10), served.of_runs()
    beats = len(toy.lines("beat"))
    time.sleep(0.5)
    assert len(toy.lines("beat")) == beats
    assert toy.lines("order") == ["first"]
    toy.stages(first=stage("first"), endless=stage("endless", "first"))
    again = served.begin("pipeline")
    served.reaches(again, "COMPLETED")
    assert toy.lines("order") == ["first", "endless"], "what was done was not done again"
    assert until(lambda: "first: up to date" in served.log(again), 20), "Prefect's lines come late"


@pytest.mark.soak
def test_a_second_run_in_the_folder_ends_with_one_line(served: Served) -> None:
    """Beside a run of the deployment Prefect's limit ends it, beside one by hand the lock does."""
    toy = served.toy
    toy.stages(held=stage("held", cmd="sh -c 'while ! test -e go; do sleep 0.1; done'"))
    first = served.begin("pipeline")
    assert until(lambda: "Running stage 'held'" in served.log(first), 90)
    assert "concurrency limit" in served.reaches(served.begin("pipeline"), "CANCELLED")
    code, output = toy.run()
    assert code == 75
    assert output.startswith("specdec: error: another run is going on in this folder (pid ")
    (toy.root / "go").touch()
    served.reaches(first, "COMPLETED")
    (toy.root / "go").unlink()
    toy.stages(other=stage("other", cmd="sh -c 'while ! test -e go; do sleep 0.1; done'"))
    by_hand = toy.start()
    try:
        assert until((toy.root / ".specdec/run.pid").exists, 90)
        second = served.begin("pipeline")
        told = served.reaches(second, "COMPLETED")
    finally:
        (toy.root / "go").touch()
        output, _ = by_hand.communicate(timeout=90)
    assert told == f"another run is going on in this folder (pid {by_hand.pid}): wait for it, or stop it"
    assert served.get(f"flow_runs/{second}")["state"]["name"] == "Skipped"
    assert "Traceback" not in served.log(second)
    assert by_hand.returncode == 0, output


@pytest.mark.soak
def test_no_two_runs_have_the_gpu(served: Served) -> None:
    """A slot of the limit is held by somebody else: the run waits for it and says so."""
    toy = served.toy
    toy.stages(wants=stage("wants"))
    lease = served.post(
        "v2/concurrency_limits/increment-with-lease", {"names": ["gpu"], "slots": 1, "lease_duration": 300}
    )
    run = served.begin("pipeline")
    waits = "waits for a slot of the concurrency limit gpu: another run has it"
    assert until(lambda: waits in served.log(run), 60), served.log(run)
    assert "wants" not in toy.lines("order")
    served.post("v2/concurrency_limits/decrement-with-lease", {"lease_id": lease["lease_id"]})
    served.reaches(run, "COMPLETED")
    assert "wants" in toy.lines("order")
    assert served.get("v2/concurrency_limits/gpu")["active_slots"] == 0


@pytest.mark.soak
def test_a_person_approves_and_who_serves_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    root = served.toy.root
    monkeypatch.chdir(root)
    write_results(root)
    write_settings(root, register=ASKING)
    register(params(), lambda _: None)
    write_drafter(root, "one", weights="third")
    write_figures(root, "one", speedup=1.8)
    register(params(register=ASKING), lambda _: None)
    served.toy.stages(wanted=stage("wanted"))
    served.reaches(served.begin("pipeline"), "COMPLETED")  # asks at its end, and tells of the present champion
    asking = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
    assert until(lambda: served.post("flow_runs/filter", asking), 120), served.printed()
    (run,) = served.post("flow_runs/filter", asking)
    assert until(lambda: not served.has_process(run["id"]), 30), "a suspended run costs no process"
    keyset = run["state"]["state_details"]["run_input_keyset"]
    assert "| | version 3 | version 1 (champion) |" in str(
        served.get(f"flow_runs/{run['id']}/input/{keyset['description']}")
    )
    served.post(f"flow_runs/{run['id']}/resume", {"run_input": {"approve": True, "by": "Anna", "why": "faster"}})
    served.reaches(run["id"], "COMPLETED")
    assert aliases(root) == {"champion": "3", "previous": "1"}
    assert tag(root, "3").startswith("passed: approved by Anna (")
    assert until(lambda: len(served.toy.lines("told")) == 2, 120), served.printed()
    assert served.toy.lines("told") == [f"models:/{NAME}/1 after", f"models:/{NAME}/3 after 1"]


@pytest.mark.soak
def test_ctrl_c_ends_all_of_it_the_runs_too(served: Served) -> None:
    """The last test: nothing is served after it."""
    served.toy.stages(endless=stage("endless", cmd=STUBBORN))
    (served.toy.root / "beat").unlink(missing_ok=True)
    served.begin("pipeline")
    assert until(lambda: served.toy.lines("beat"), 90)
    family = [served.process.pid, *(c.pid for c in psutil.Process(served.process.pid).children(recursive=True))]
    everything = [psutil.Process(pid) for pid in family] + strays(served.toy.root)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    assert until(lambda: not any(is_alive(p) for p in everything), 10), [p for p in everything if is_alive(p)]
    assert not strays(served.toy.root)
