"""What DVC, Prefect and MLflow cost by themselves: a flow over stages that do nothing, and a no-op.

    python -m benchmarks.machinery [--stages 10] [--rounds 3]

Seconds of wall clock and of processor time (user and system, of every process), the least of the rounds: other work
on the machine only adds. A flow is run over one stage and over `--stages` more; the difference is the cost of a
stage, the rest is the start. The no-op is that of this repository's `dvc.yaml`, in a copy with stand-in outputs.
"""

import argparse
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from specdec.tracking.store import connect

ROOT = Path(__file__).resolve().parents[1]
TRACKED = ("dvc.yaml", "params.yaml", "specdec", "stages", ".dvc/config", ".dvcignore")


@dataclass(frozen=True)
class Cost:
    """Seconds."""

    wall: float
    processor: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.processor - other.processor)

    def __truediv__(self, count: int) -> "Cost":
        return Cost(self.wall / count, self.processor / count)

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"


def main() -> None:
    options = arguments()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(PYTHONPATH=str(ROOT), DVC_NO_ANALYTICS="1", DO_NOT_TRACK="true")
    table = Table(title=f"seconds of wall clock (of the processor), least of {options.rounds}", title_justify="left")
    for column in ("", "a stage", "start"):
        table.add_column(column)

    def add(*cells: str) -> None:
        table.add_row(*cells)
        print(*cells, sep="  ", flush=True)

    with tempfile.TemporaryDirectory(prefix="specdec-machinery-") as folder:
        work = Path(folder)
        os.environ["PREFECT_HOME"] = str(work / "prefect")
        project = make_project(work / "flow")
        run_flow(project, 1)  # makes Prefect's database
        add("flow, temporary Prefect server", *stage_and_start(project, options))
        with prefect_server() as url:
            os.environ["PREFECT_API_URL"] = url
            add("flow, Prefect server that runs", *stage_and_start(project, options))
            del os.environ["PREFECT_API_URL"]
        repository = make_repository(work / "repository")
        for name, command in (("dvc repro", ["dvc", "repro"]), ("make run", ["flows.pipeline"])):
            noop = least(options.rounds, lambda command=command: run(repository, *command))  # type: ignore[misc]
            add(f"no-op `{name}` of this repository", "", str(noop))
    Console(width=100).print(table)


def stage_and_start(project: Path, options: argparse.Namespace) -> tuple[str, str]:
    one = least(options.rounds, lambda: run_flow(project, 1))
    more = least(options.rounds, lambda: run_flow(project, 1 + options.stages))
    stage = (more - one) / options.stages
    return str(stage), str(one - stage)


def least(rounds: int, measure: Any) -> Cost:
    found = [measure() for _ in range(rounds)]
    return Cost(min(c.wall for c in found), min(c.processor for c in found))


def make_project(root: Path) -> Path:
    """With git, DVC and MLflow's tables; `run_flow` declares its stages."""
    root.mkdir()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").write_text("stages: {}\n")
    connect(root)
    return root


def run_flow(project: Path, stages: int) -> Cost:
    """One behind the other, all of them out of date."""
    (project / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(project / ".dvc/cache", ignore_errors=True)  # with what a stage gave before, DVC would not run it
    declared: dict[str, Any] = {}
    for number in range(stages):
        before = {"deps": [f"{number - 1}.txt"]} if number else {}
        declared[f"stage{number}"] = {"cmd": f"echo {number} > {number}.txt", "outs": [f"{number}.txt"], **before}
        (project / f"{number}.txt").unlink(missing_ok=True)
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": declared}))
    return run(project, "flows.pipeline")


def make_repository(root: Path) -> Path:
    """This repository's stages, with a small file or folder for each output, as if all had run."""
    for name in TRACKED:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    declared = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    drafters = yaml.safe_load((root / "params.yaml").read_text())["drafters"]
    for stage in declared.values():
        for name in drafters if "foreach" in stage else [""]:
            body = stage.get("do", stage)
            outs = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
            for out in outs:
                path = root / (out if isinstance(out, str) else next(iter(out))).replace("${key}", name)
                file = path if path.suffix else path / "content.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("{}\n")  # what reads JSON is content with it
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "-q"], cwd=root, check=True)
    return root


def run(root: Path, *module: str) -> Cost:
    """Of `python -m MODULE...`, and all that it starts and waits for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *module], cwd=root, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(module)} failed:\n{done.stdout}{done.stderr}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@contextmanager
def prefect_server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline or server.poll() is not None:
                    sys.exit("the Prefect server did not start")
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=10, help="beside the first one")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
