"""The DVC pipeline as a Prefect flow.

    python -m flows.pipeline [--only STAGE ...]

Stages, order and staleness come from DVC (`flows.graph`); a stage is a task (`flows.stage_task`). Without
`PREFECT_API_URL` Prefect starts a temporary server for as long as the flow runs.
"""

import argparse
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.states import Completed, State

from flows.alone import Busy, alone
from flows.announce import tell
from flows.checkout import check_checkout
from flows.graph import Plan, Stage, allow_no_git, read_plan
from flows.process import Commands, looking_after
from flows.promote import request
from flows.remote import remote_name
from flows.server import a_gpu, keep_from_ctrl_c
from flows.stage_task import StageFailed, run_stage
from flows.summary import artifact_table, print_summary
from flows.turns import Turns
from specdec.config import Params, load_params
from specdec.errors import SpecdecError, TransientError
from specdec.tracking import EXECUTION, execution_run, project_root
from specdec.tracking.store import hide_credentials


@flow(name="pipeline", persist_result=False)
def pipeline(
    only: list[str] | None = None, execution: str | None = None, checkout: str | None = None
) -> State | None:
    """Brings every stage of `dvc.yaml` up to date. Raises StageFailed, naming the first that failed. Where another
    run goes on in the folder, this one ends as skipped, and says so.

    only: these stages (docs/operations.md); what they need is brought from the remote, and does not run here.
    execution, checkout: of a run over several machines (flows.machines), which is one execution in MLflow; there
    another run raises Busy: the machines behind this one wait for its share.
    """
    root = project_root()
    try:
        with alone(root):
            bring_up_to_date(root, only, execution, checkout)
    except Busy as error:
        if execution:
            raise
        get_run_logger().warning("%s", error)
        return Completed(name="Skipped", message=str(error))
    return None


def bring_up_to_date(root: Path, only: list[str] | None, execution: str | None, checkout: str | None) -> None:
    """Everything in between: the run's record, a GPU, the stages; then who is told and asked."""
    logger = get_run_logger()
    if checkout:
        check_checkout(root, checkout)
    params = load_params(root / "params.yaml")
    allow_no_git(root)
    plan = planned(root, only)
    remote = remote_name(root)
    commands = Commands()
    with ExitStack() as stack:
        stack.enter_context(looking_after(temporary_servers()))
        if not plan.up_to_date:
            stack.enter_context(a_gpu(logger.info))
            run_id = stack.enter_context(recording(params, root, execution))
            logger.info("MLflow run %s", run_id)
        stack.callback(commands.stop)
        run_stages(plan, root, commands, remote)
    if rows := artifact_table(root):
        create_table_artifact(rows, key="drafters", description="What was measured and registered")
    tell(root, "the gates", logger.info)
    if params.register_.promote == "approval":
        request(root, logger.info)


def planned(root: Path, only: list[str] | None) -> Plan:
    plan = read_plan(root)
    return plan.only(only) if only else plan


def run_stages(plan: Plan, root: Path, commands: Commands, remote: str | None) -> None:
    """Every stage as a task that waits for its upstream. Independent branches go on when one fails."""
    turns = Turns()
    futures: dict[str, Any] = {}
    for stage in plan.stages:
        task = run_stage.with_options(
            name=stage.name,
            task_run_name=stage.name,
            retries=stage.retries,
            retry_delay_seconds=stage.retry_delay,
        )
        upstream = [futures[name] for name in stage.upstream]
        given = (stage, root, commands, turns, remote)
        futures[stage.name] = task.submit(*given, wait_for=upstream, return_state=False)
    for future in futures.values():
        future.wait()
    _raise_first_failure(plan.stages, futures)


def _raise_first_failure(stages: tuple[Stage, ...], futures: dict[str, Any]) -> None:
    states = {stage.name: futures[stage.name].state for stage in stages}
    for name, state in states.items():
        if state.is_failed() or state.is_crashed() or state.is_cancelled():
            error = state.result(raise_on_failure=False)
            if isinstance(error, BaseException):
                raise error
            raise StageFailed(name, 1, [state.message or state.name])


@contextmanager
def recording(params: Params, root: Path, execution: str | None = None) -> Iterator[str]:
    """The MLflow run of this execution, which the stages find by `SPECDEC_EXECUTION`; yields its id."""
    before = os.environ.get(EXECUTION)
    os.environ[EXECUTION] = execution or uuid.uuid4().hex
    try:
        with execution_run(params, root) as run_id:
            yield run_id
    finally:
        if before is None:
            os.environ.pop(EXECUTION)
        else:
            os.environ[EXECUTION] = before


def temporary_servers() -> list[int]:
    """The pids of Prefect servers that this process started."""
    children = psutil.Process().children()
    return [child.pid for child in children if "prefect.server.api.server:create_app" in child.cmdline()]


def main() -> None:
    """The command line: exits 0, or with the error's code after one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="what they need is brought from the DVC remote")
    only = parser.parse_args().only
    # Prefect calls this handler after its own; the default one would end us before the temporary server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start(only)
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("specdec: error: interrupted: run the same command again, it goes on from here", file=sys.stderr)
        sys.exit(130)


def start(only: list[str] | None = None) -> None:
    """Checks everything that is cheap to check, runs the flow, and prints what came out."""
    root = project_root()
    load_params(root / "params.yaml")
    with alone(root):  # before the plan: DVC cannot read it while another run writes
        _start(root, only)


def _start(root: Path, only: list[str] | None) -> None:
    if allow_no_git(root):
        print("no git repository here: DVC works without it, and results will name no commit", flush=True)
    plan = planned(root, only)
    # Where there is a remote, a stage that ran here may still be missing there.
    if plan.up_to_date and not remote_name(root) and not os.environ.get("PREFECT_API_URL"):
        for stage in plan.stages:
            print(f"{stage.name}: up to date")
        print("nothing to do, so no Prefect server was started and no MLflow run was opened", flush=True)
    else:
        _check_server(os.environ.get("PREFECT_API_URL"))
        pipeline(only)
    print_summary(root)


def _check_server(url: str | None) -> None:
    if url is None:
        print("starting a temporary Prefect server (some seconds; set PREFECT_API_URL to use one)", flush=True)
        keep_from_ctrl_c()
        return
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        told = hide_credentials(str(error)) or type(error).__name__
        raise TransientError(
            f"the Prefect server {hide_credentials(url)} does not answer ({told}): "
            "start it with `make prefect`, or unset PREFECT_API_URL"
        ) from None


if __name__ == "__main__":
    main()
