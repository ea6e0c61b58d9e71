"""Tells whoever serves that the champion changed: the Prefect event `specdec.champion.changed`.

    python -m flows.announce

Its resource is the registered model, `specdec.model.NAME`; its payload `model`, `version`, `previous` (the one that
was announced before) and `by`. The flows `pipeline` and `promote` announce what they did; this one announces what was
done by hand (`specdec promote`, `specdec rollback`) or on another machine. A change is announced at least once.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.events import Event, Resource
from prefect.events.clients import RETRYABLE_EXCEPTIONS, get_events_client

from flows.server import server_url
from specdec.errors import SpecdecError, TransientError
from specdec.tracking import project_root
from specdec.tracking.announced import mark_told, untold_change

EVENT = "specdec.champion.changed"


@flow(name="announce", persist_result=False)
def announce() -> bool:
    """Says whether there was something to announce."""
    return tell(project_root(), "hand", get_run_logger().info)


def tell(root: Path, by: str, log: Callable[[str], None]) -> bool:
    """Emits the event where the champion is not the one that was announced last. A temporary server has no listeners:
    there the change waits for a run with a real one."""
    if server_url() is None:
        return False
    change = untold_change(root)
    if change is None:
        return False
    names = {"prefect.resource.id": f"specdec.model.{change.model}", "prefect.resource.name": change.model}
    event = Event(event=EVENT, resource=Resource(names), payload={**asdict(change), "by": by})
    try:
        asyncio.run(_emit(event))
    except RETRYABLE_EXCEPTIONS as error:
        log(f"{EVENT} is not announced yet, the server does not take events ({error or type(error).__name__})")
        return False
    mark_told(root, change)
    log(f"announced {EVENT}: version {change.version} of {change.model}, by {by}")
    return True


async def _emit(event: Event) -> None:
    """Until the server has it. (`emit_event` would send it from the background, and not say whether it came.)"""
    async with get_events_client(checkpoint_every=1) as client:
        await client.emit(event)


def main() -> None:
    try:
        if server_url() is None:
            raise TransientError("no Prefect server to tell: set PREFECT_API_URL (`make serve-flows` starts one)")
        announce()
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
