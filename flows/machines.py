"""One pipeline over several machines: a stage runs where a deployment of the flow `pipeline` is served.

    python -m flows.machines pipeline/training synthesize=pipeline/serving evaluate=pipeline/serving

The first deployment gets every stage that no other one is named for; `evaluate` stands for every `evaluate@...`.
DVC's graph gives the order. What a deployment is asked for it runs; what that needs it brings from the DVC remote
(`flows.remote`). docs/operations.md says how machines, pools and the remote are set up.
"""

import argparse
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.checkout import checkout_id
from flows.graph import Plan, read_plan
from specdec.config import load_params
from specdec.errors import ConfigError, SpecdecError
from specdec.tracking import project_root


class ShareFailed(SpecdecError):
    """What a deployment was asked for did not come to its end."""


@flow(name="machines", persist_result=False)
def machines(default: str, places: dict[str, str]) -> None:
    """Runs every stage on its deployment: `places` by stage, `default` for the others. Deployments that need nothing
    of each other run at the same time. All of it is one execution in MLflow. Raises ConfigError, ShareFailed."""
    root = project_root()
    load_params(root / "params.yaml")
    plan = read_plan(root)
    plan.only(list(places) or [stage.name for stage in plan.stages])  # every name is a stage's
    asked = {"execution": uuid.uuid4().hex, "checkout": checkout_id(root)}
    for wave in waves(plan, default, places):
        runs = [
            share.with_options(task_run_name=deployment).submit(deployment, {"only": stages, **asked})
            for deployment, stages in wave.items()
        ]
        for run in runs:
            run.wait()
        for run in runs:
            run.result()


def waves(plan: Plan, default: str, places: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    """Which deployments run which stages at the same time, one wave after the other: each deployment gets all that
    needs nothing but earlier waves and its own share."""
    done: set[str] = set()
    left = list(plan.stages)
    while left:
        wave: dict[str, list[str]] = {}
        for stage in left:
            place = places.get(stage.name) or places.get(stage.name.partition("@")[0]) or default
            if set(stage.upstream) <= done | set(wave.get(place, ())):
                wave.setdefault(place, []).append(stage.name)
        yield wave
        done.update(name for names in wave.values() for name in names)
        left = [stage for stage in left if stage.name not in done]


@task(cache_policy=NO_CACHE, persist_result=False)
def share(deployment: str, parameters: dict[str, Any]) -> None:
    """Raises ShareFailed, with what the deployment's run said; ConfigError where there is no such deployment."""
    try:
        run: Any = run_deployment(deployment, parameters=parameters, poll_interval=1)
    except ObjectNotFound:
        raise ConfigError(f"Prefect has no deployment {deployment}: docs/operations.md says how to make it") from None
    if not run.state.is_completed():
        told = run.state.message or "no message"
        raise ShareFailed(f"{deployment} ({', '.join(parameters['only'])}): {run.state.name}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("default", help="the deployment of every stage that none is named for")
    parser.add_argument("places", nargs="*", metavar="STAGE=DEPLOYMENT")
    given = parser.parse_args()
    try:
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError("PREFECT_API_URL names no server: the machines meet at one")
        places = dict(_place(text) for text in given.places)
        machines(given.default, places)
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "specdec: error: interrupted: what a deployment runs goes on; `prefect flow-run cancel`", file=sys.stderr
        )
        sys.exit(130)


def _place(text: str) -> tuple[str, str]:
    stage, equals, deployment = text.partition("=")
    if not (stage and equals and deployment):
        raise ConfigError(f"{text!r} is no STAGE=FLOW/DEPLOYMENT")
    return stage, deployment


if __name__ == "__main__":
    main()
