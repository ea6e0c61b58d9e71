"""The flow, run as `make run` runs it, over toy pipelines."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.flows.conftest import Toy
from tests.tracking.example import REPOSITORY, register_settings, write_json, write_settings


def stage(name: str, *needs: str, cmd: str = "", **meta: Any) -> dict[str, Any]:
    """Writes its name to `order` and its output `<name>.txt`, from those of the stages that it needs."""
    inputs = [f"{n}.txt" for n in needs]
    command = f"{cmd or 'true'} && echo {name} >> order && cat /dev/null {' '.join(inputs)} > {name}.txt"
    return {"cmd": command, "deps": inputs, "outs": [f"{name}.txt"], "meta": meta}


def flow_runs(toy: Toy) -> int:
    """How many runs of our flow the server knows."""
    url = toy.environment["PREFECT_API_URL"]
    return len(httpx.post(f"{url}/flow_runs/filter", json={}).json())


def parents(toy: Toy) -> list[str]:
    """The status of each MLflow execution."""
    with sqlite3.connect(toy.root / "mlflow.db") as database:
        rows = database.execute(
            "select status from runs join tags using (run_uuid) where key = 'specdec.kind' and value = 'execution'"
        ).fetchall()
    database.close()
    return [status for (status,) in rows]


ALONE = "echo + >> alone && sleep 1 && echo - >> alone"
TOGETHER = (  # each waits for the other one to begin
    "echo + >> together; for _ in $(seq 120); do test $(wc -l < together) -ge 2 && break; sleep 0.5; done; "
    "echo - >> together"
)
FLAKY = "sh -c 'echo try >> tries; test $(wc -l < tries) -ge 3 || exit 75'"
TALKS = r"printf '[   3.2s] half an hour\n50%%\rdone 100%%\r\n'; sleep 3; echo late"
INTERVAL = {"value": 1.834, "low": 1.7, "high": 1.96}


@dataclass(frozen=True)
class Run:
    """A flow that ran: when which line came (seconds), and how it ended."""

    toy: Toy
    code: int
    lines: list[tuple[float, str]]

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def when(self, end: str) -> float:
        return next(at for at, line in self.lines if line.endswith(end))


@pytest.fixture(scope="module")
def finished(shared_toy: Toy) -> Run:
    """Independent, exclusive, flaky and slow stages, none of which fails for good, and results to show."""
    shared_toy.stages(
        last=stage("last", "alone1", "alone2"),
        alone1=stage("alone1", "one", "two", cmd=ALONE, exclusive=True),
        alone2=stage("alone2", "one", "two", cmd=ALONE, exclusive=True),
        one=stage("one", cmd=TOGETHER),
        two=stage("two", cmd=TOGETHER),
        flaky=stage("flaky", "last", cmd=FLAKY, retries=2, retry_delay=0.1),
        talks=stage("talks", "last", cmd=TALKS),
    )
    figures = {
        "acceptance_length": INTERVAL,
        "speedup": INTERVAL,
        "position_rates": [0.55, 0.28],
        "lossless": True,
    }
    write_json(shared_toy.root / "metrics/evaluate/medusa.json", figures)
    told = {"reason": "passes every gate", "engine": "not tried in vLLM"}
    entry = {"version": "3", "aliases": ["champion"], "gates": [], **told}
    write_json(shared_toy.root / "registry.json", {"model": "specdec-x", "versions": {"medusa": entry}})
    write_json(shared_toy.root / "reports/medusa/report.html", "")
    process = shared_toy.start()
    assert process.stdout is not None
    with process.stdout:
        lines = [(time.monotonic(), line.rstrip()) for line in process.stdout]
    return Run(shared_toy, process.wait(), lines)


def test_stages_run_in_dvcs_order(finished: Run) -> None:
    assert finished.code == 0, finished.output
    order = finished.toy.lines("order")
    assert sorted(order[:2]) == ["one", "two"]
    assert sorted(order[2:4]) == ["alone1", "alone2"]
    assert order[4] == "last"
    assert sorted(order[5:]) == ["flaky", "talks"]
    assert "Task run 'last' - Running stage 'last':" in finished.output
    assert parents(finished.toy)[0] == "FINISHED"


def test_independent_stages_run_together_and_exclusive_ones_alone(finished: Run) -> None:
    assert finished.toy.lines("together") == ["+", "+", "-", "-"]
    assert finished.toy.lines("alone") == ["+", "-", "+", "-"]


def test_what_may_pass_is_tried_again(finished: Run) -> None:
    assert finished.toy.lines("tries") == ["try"] * 3


def test_lines_come_live_and_with_one_clock(finished: Run) -> None:
    assert finished.when("- late") - finished.when("- half an hour") > 2
    assert "- done 100%" in finished.output
    assert "git add" not in finished.output


def test_it_ends_with_a_table_and_where_to_look(finished: Run) -> None:
    row = next(line for _, line in finished.lines if "1.83 [1.70, 1.96]" in line)
    for cell in ("medusa", "0.55 0.28", "yes", "specdec-x 3 (champion)"):
        assert cell in row
    assert "medusa: passes every gate" in finished.output
    assert f"Report:  {finished.toy.root}/reports/medusa/report.html" in finished.output
    assert "make mlflow" in finished.output
    url = finished.toy.environment["PREFECT_API_URL"]
    artifacts = httpx.post(f"{url}/artifacts/filter", json={}).json()
    assert any("specdec-x 3 (champion)" in str(artifact["data"]) for artifact in artifacts)


def test_what_is_up_to_date_is_skipped_and_said(finished: Run) -> None:
    toy = finished.toy
    before, runs = len(toy.lines("order")), flow_runs(toy)
    (toy.root / "last.txt").unlink()
    code, output = toy.run()
    assert code == 0, output
    assert "one: up to date" in output
    assert "Running stage 'one'" not in output
    assert len(toy.lines("order")) == before  # DVC had `last` in its cache
    assert flow_runs(toy) == runs + 1


def test_nothing_to_do_starts_nothing(finished: Run) -> None:
    toy, runs = finished.toy, parents(finished.toy)
    code, output = toy.without_server().run()
    assert code == 0
    assert "last: up to date" in output
    assert "no Prefect server was started" in output
    before = flow_runs(toy)
    code, output = toy.run()
    assert code == 0, output
    assert flow_runs(toy) == before + 1  # where there is a server, it is told
    assert parents(toy) == runs


def test_a_failure_names_the_stage_its_code_and_its_error(toy: Toy) -> None:
    error = 'echo before; echo "specdec: error: no such revision" >&2; exit 2'
    toy.stages(
        bad=stage("bad", cmd=f"sh -c '{error}'", retries=2),
        after=stage("after", "bad"),
        other=stage("other"),
        temporary=stage("temporary", cmd="sh -c 'echo try >> tries; exit 75'", retries=1, retry_delay=0.1),
    )
    code, output = toy.run()
    assert code == 2
    assert output.splitlines()[-1] == "specdec: error: bad failed (exit code 2): no such revision"
    assert "Traceback" not in output
    assert output.count("Running stage 'bad'") == 1  # trying again cannot help
    assert toy.lines("tries") == ["try"] * 2  # and here it ended
    assert toy.lines("order") == ["other"]
    assert parents(toy) == ["FAILED"]


def test_settings_are_checked_first(toy: Toy) -> None:
    toy.stages(first=stage("first"))
    write_settings(toy.root, register=register_settings(min_sped=1.0))
    code, output = toy.run()
    assert code == 2
    assert "params.yaml: register.min_sped: unknown key" in output
    assert toy.lines("order") == []


@pytest.mark.soak
def test_a_pipeline_that_is_not_there_or_broken(toy: Toy) -> None:
    code, output = toy.run()
    assert (code, "dvc.yaml is not in" in output) == (2, True)
    (toy.root / "dvc.yaml").write_text("stages: {a: {cmd: true, deps: [a], outs: [a]}}")
    code, output = toy.run()
    assert code == 2
    assert "specdec: error: DVC cannot read the pipeline" in output
    assert "Traceback" not in output


def test_a_server_that_is_not_there_is_said(toy: Toy) -> None:
    toy.stages(first=stage("first"))
    toy.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    code, output = toy.run()
    assert code == 75
    assert "the Prefect server http://127.0.0.1:9/api does not answer" in output


def test_an_mlflow_that_is_not_there_stops_it_before_any_stage(toy: Toy) -> None:
    toy.stages(first=stage("first"))
    toy.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    code, output = toy.run()
    assert code == 75, output
    assert output.splitlines()[-1].startswith("specdec: error: MLflow at http://127.0.0.1:9 does not answer")
    assert toy.lines("order") == []


@pytest.mark.soak
def test_with_neither_git_nor_a_server_it_works_and_says_so(toy: Toy) -> None:
    shutil.rmtree(toy.root / ".git")
    toy.stages(first=stage("first"))
    code, output = toy.without_server().run()
    assert code == 0, output
    assert "results will name no commit" in output
    assert "Starting temporary server" in output
    assert toy.lines("order") == ["first"]
    assert not strays(toy.root)
    code, output = toy.without_server().run()
    assert (code, "results will name no commit" in output) == (0, False)


def strays(root: Path) -> list[psutil.Process]:
    """Processes that still stand in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(root)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


# It leaves its process group, and writes for as long as it lives.
STUBBORN = "setsid sh -c 'while true; do echo x >> beat; sleep 0.1; done'"


@pytest.mark.parametrize("end", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_nothing_is_left_behind_when_it_is_interrupted(toy: Toy, end: signal.Signals) -> None:
    process = start_endless(toy)
    process.send_signal(end)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    check_nothing_writes(toy)
    assert parents(toy) == ["KILLED"]


@pytest.mark.soak
def test_ctrl_c_at_a_terminal_reaches_all_processes_at_once(toy: Toy) -> None:
    """The temporary server outlives it, or the flow could not say how it ended."""
    process = start_endless(toy.without_server(), own_group=True)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("uvicorn" in child.cmdline() for child in children)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "specdec: error: interrupted: run the same command again, it goes on from here" in output.splitlines()
    assert "Connect" not in output
    check_nothing_writes(toy)
    assert until(lambda: not any(is_alive(child) for child in children), 15)
    assert parents(toy) == ["KILLED"]


@pytest.mark.soak
def test_nothing_is_left_behind_when_it_is_killed(toy: Toy) -> None:
    process = start_endless(toy.without_server())
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("uvicorn" in child.cmdline() for child in children)
    process.kill()
    process.communicate()
    check_nothing_writes(toy)
    assert until(lambda: not any(is_alive(child) for child in children), 15)
    assert parents(toy) == ["RUNNING"]
    toy.stages(endless=stage("endless"))
    code, output = toy.run()
    assert code == 0, output
    assert sorted(parents(toy)) == ["FINISHED", "KILLED"]


@pytest.mark.soak
def test_a_second_run_in_one_folder_is_refused_and_a_killed_one_holds_nothing(toy: Toy) -> None:
    first = start_endless(toy)
    try:
        code, output = toy.run()
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert code == 75, output
    assert output.splitlines() == [
        f"specdec: error: another run is going on in this folder (pid {first.pid}): wait for it, or stop it"
    ]
    check_nothing_writes(toy)
    toy.stages(quick=stage("quick"))
    code, output = toy.run()
    assert code == 0, output
    assert not (toy.root / ".specdec/run.pid").exists()


def start_endless(toy: Toy, own_group: bool = False) -> "subprocess.Popen[str]":
    """A flow whose first stage never ends."""
    toy.stages(endless=stage("endless", cmd=STUBBORN), later=stage("later", "endless"))
    process = toy.start(own_group)
    assert until(lambda: toy.lines("beat"), 90)
    assert strays(toy.root)
    return process


def check_nothing_writes(toy: Toy) -> None:
    assert until(lambda: not strays(toy.root), 10)
    beats = len(toy.lines("beat"))
    time.sleep(0.5)
    assert len(toy.lines("beat")) == beats
    assert toy.lines("order") == []


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_it_is_a_flow_that_a_deployment_can_name() -> None:
    check = "import flows.pipeline as p, os; print(type(p.pipeline).__name__, os.environ['PREFECT_HOME'])"
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["Flow", str(REPOSITORY / ".specdec/prefect")]
