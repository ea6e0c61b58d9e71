"""One look at a server that drafts: is as much accepted as its version promised? After a real drop, a retraining.

    python -m flows.watch http://127.0.0.1:8000 [--version champion] [--every 60] [--looks 0] [--latest prompts.jsonl]

A deployment calls it on a schedule, with one look each; the state is in `.specdec/watch`. What was read goes to the
MLflow run `watch NAME VERSION`, acceptance by position over time.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows.retrain import retrain
from flows.server import keep_from_ctrl_c
from specdec.errors import ServerError, SpecdecError, TransientError
from specdec.serving.counters import read_counters
from specdec.tracking.store import connect, hide_credentials, project_root
from specdec.tracking.watch import Look, Promise, Watch, WatchSettings, promise_of
from specdec.tracking.watch_run import watch_run

FOLDER = Path(".specdec/watch")


@flow(name="watch", persist_result=False)
def watch(
    url: str,
    version: str = "champion",
    every: float = 60.0,
    looks: int = 1,
    least_drafts: int = 500,
    drop: float = 0.1,
    false_alarms: float = 0.01,
    latest: str | None = None,
) -> bool:
    """Looks `looks` times (0: without end), `every` seconds apart. Says whether there was an alarm.

    latest: a file of prompts as they come in now; after an alarm the drafters are trained again with them, from the
    champion on, and the gates decide. None: the alarm alone.
    """
    root = project_root()
    log: Callable[[str], None] = get_run_logger().info
    promise = promise_of(version, root)
    settings = WatchSettings(least_drafts, drop, false_alarms)
    watched = Watch(promise, url, settings, root / FOLDER, log)
    log(f"watching {hide_credentials(url)}, which serves version {promise.version} of {promise.model}")
    number = 0
    while looks == 0 or number < looks:
        if number:
            time.sleep(every)
        number += 1
        found = one_look(watched, url, promise, log)
        if found is not None and found.alarm:
            answer(found, url, promise, latest, log)
            watched.forget()
            return True
    return False


def one_look(watched: Watch, url: str, promise: Promise, log: Callable[[str], None]) -> Look | None:
    """A server that does not answer is looked at again the next time."""
    try:
        found = watched.look(read_counters(url))
    except ServerError as error:
        log(f"{hide_credentials(str(error))}: looked at again later")
        return None
    if found is not None:
        log(str(found))
        try:
            with watch_run(connect(), promise, url, project_root()) as tracked:
                tracked.log_metrics({"watch": figures(found)}, step=found.readings)
        except TransientError as error:
            log(f"{error}: this reading is not in MLflow")
    return found


def figures(look: Look) -> dict[str, object]:
    rates = {f"position_{i + 1}": rate for i, rate in enumerate(look.position_rates)}
    kept = {
        k: v
        for k, v in asdict(look).items()
        if k in ("drafts", "tokens", "acceptance_length", "promised", "evidence")
    }
    return {**kept, "rate": rates, "alarm": float(look.alarm)}


def answer(look: Look, url: str, promise: Promise, latest: str | None, log: Callable[[str], None]) -> None:
    told = (
        f"{hide_credentials(url)} accepts {look.acceptance_length:.3f} tokens a step; version {promise.version} of "
        f"{promise.model} promised {look.promised:.3f}"
    )
    log(f"a drop: {told}")
    create_markdown_artifact(key="acceptance-drop", markdown=told, description="Served acceptance has fallen")
    if latest is None:
        log("nothing is trained: no file of the latest prompts was named")
        return
    retrain(Path(latest))


def main() -> None:
    options = arguments()
    keep_from_ctrl_c()
    try:
        alarm = watch(**vars(options))
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1 if alarm and options.latest is None else 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a vLLM server, whose /metrics is read")
    parser.add_argument("--version", default="champion", help="that it serves: an alias, a number, models:/...")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--looks", type=int, default=0, help="0: without end")
    parser.add_argument("--least-drafts", type=int, default=500, help="steps in one reading")
    parser.add_argument("--drop", type=float, default=0.1, help="share of the promised acceptance that may be lost")
    parser.add_argument("--false-alarms", type=float, default=0.01, help="chance of one, ever")
    parser.add_argument("--latest", help="prompts as they come in now: after an alarm they are trained on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
