"""Promotion by approval: a person sees the waiting version beside the champion, and says yes or no.

    python -m flows.promote [VERSION]

With `register.promote: approval` the stage `register` moves no champion; what passes every gate waits for a person.
As a deployment this flow suspends, and costs nothing until it is answered on Prefect's page or by its API; started by
hand it pauses, and ends when it is answered. Yes promotes as `specdec promote` does, under the same lock and checks,
and only beside the champion that was shown; no writes who and why to the version.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, pause_flow_run, runtime, suspend_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.deployments import run_deployment
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, read_flow_run_input
from pydantic import Field

from flows.announce import tell
from flows.server import server_url
from specdec.errors import SpecdecError, TransientError
from specdec.tracking import project_root
from specdec.tracking.approval import Approval
from specdec.tracking.proposal import Proposal, propose, waiting
from specdec.tracking.release import NoRegistry, open_registry, promote_by_hand, refuse

DEPLOYMENT = "promote/specdec"
_SHOWN = "shown"  # the flow run's record of what it has shown: a suspended flow starts again from the top
Log = Callable[[str], None]


class Answer(RunInput):
    """What a person says."""

    approve: bool = Field(description="yes: it becomes the champion; no: it is refused, and this is written to it")
    by: str = Field(min_length=1, description="who says so")
    why: str = Field("", description="and why")


@flow(name="promote", persist_result=False)
def promote(version: str | None = None, hours: float = 168.0) -> bool | None:
    """Asks about the version that waits; says whether it was approved, None where none waits. hours: an answer must
    come within. Raises TrackingError where it cannot be promoted, Overtaken where another is the champion by now."""
    root, log = project_root(), get_run_logger().info
    shown = _shown_before() or _show(root, version)
    if shown is None:
        log("no version waits for approval")
        return None
    log(f"version {shown.version} of {shown.model} waits for approval: resume this run with an answer")
    answer = _ask(shown, round(hours * 3600))
    approval = Approval(answer.by, answer.why, shown.champion)
    if answer.approve:
        promote_by_hand(root, shown.version, False, log, approval)
        tell(root, answer.by, log)
    else:
        refuse(root, shown.version, approval, log)
    return answer.approve


def request(root: Path, log: Log) -> None:
    """At the end of a pipeline: starts the deployment of this flow for the version that waits, once; without a server
    or deployment it says what a person can do."""
    try:
        number = waiting(root)
    except NoRegistry:  # some of the stages ran, in a new project
        return
    if number is None:
        return
    todo = f"version {number} waits for approval: `specdec promote {number}` makes it the champion"
    if server_url() is None:
        log(f"{todo} (no Prefect server is there to ask a person)")
    elif _is_asked(open_registry(root)[1], number):
        log(f"version {number} waits for approval: a run of the flow promote asks already")
    else:
        try:
            run: Any = run_deployment(DEPLOYMENT, parameters={"version": number}, timeout=0, as_subflow=False)
        except ObjectNotFound:
            log(f"{todo}; `python -m flows.promote` asks in Prefect (which has no deployment {DEPLOYMENT})")
        else:
            log(f"version {number} waits for approval: the flow run {run.name} of {DEPLOYMENT} asks")


def _show(root: Path, version: str | None) -> Proposal | None:
    proposal = propose(root, version)
    if proposal is not None:
        told = f"Version {proposal.version} of {proposal.model} waits for approval"
        create_markdown_artifact(proposal.comparison, key="waits-for-approval", description=told)
        create_flow_run_input(_SHOWN, asdict(proposal))
    return proposal


def _shown_before() -> Proposal | None:
    found: Any = read_flow_run_input(_SHOWN)
    return None if found is None else Proposal(**found)


def _ask(shown: Proposal, seconds: int) -> Answer:
    """Suspends where Prefect can start the run again, else keeps this process waiting."""
    form = Answer.with_initial_data(description=shown.comparison)
    if runtime.deployment.id and not runtime.flow_run.parent_flow_run_id:
        return suspend_flow_run(wait_for_input=form, timeout=seconds, key="approval")
    try:
        return pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=2, key="approval")
    except FlowPauseTimeout:
        raise TransientError(f"nobody answered within {seconds} s: version {shown.version} still waits") from None


def _is_asked(model: str, number: str) -> bool:
    """By a run that has shown this version, or is about to show the one that waits."""
    going_on = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "PAUSED"]}}}
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [promote.name]}}),
            flow_run_filter=FlowRunFilter.model_validate(going_on),
        )
    for run in runs:
        shown: Any = read_flow_run_input(_SHOWN, flow_run_id=run.id)
        if shown is None and run.parameters.get("version") in (number, None):
            return True
        if shown is not None and (shown["model"], shown["version"]) == (model, number):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="the one that waits, unless named")
    parser.add_argument("--hours", type=float, default=168.0, help="an answer must come within")
    options = parser.parse_args()
    try:
        if server_url() is None:
            _tell_without_server(options.version)
        else:
            promote(options.version, options.hours)
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell_without_server(version: str | None) -> None:
    proposal = propose(project_root(), version)
    if proposal is None:
        print("no version waits for approval")
        return
    print(proposal.comparison)
    print(f"no Prefect server is there to ask a person: `specdec promote {proposal.version}` makes it the champion")


if __name__ == "__main__":
    main()
