"""Registering, promoting and going back, killed with SIGKILL at a chosen write. A warm process forks for each try.

    python -m tests.tracking.killing PROJECT SEED TRIES [SCENARIO ...]

Every write is a moment: a file opened to be written, made, renamed, linked or removed, a statement that changes the
database, and its commit. For each scenario they are counted in a run that is let live. Then, for each try, the
project is put back, a child is killed at its moment, and another one looks at what is left and does the work again.
One line of JSON for each scenario, and one for each try.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc  # noqa: F401  (loaded once, before the forks)
import sqlalchemy
import torch

from specdec.config import load_params
from specdec.io import write_json
from specdec.tracking import drafter_run, owner
from specdec.tracking.model import CHECKPOINT, CONTENT, logged_model
from specdec.tracking.promotion import BY_HAND, MOVING
from specdec.tracking.register import register
from specdec.tracking.release import promote_by_hand, rollback
from specdec.tracking.store import Store, connect
from tests.tracking.example import write_drafter, write_figures
from tests.tracking.example import write_json as write_plain

NAME = "specdec-base"
RECEIPT = "registry.json"
SETTINGS = {"1": {"method": "medusa", "model": "models/drafters/one", "num_speculative_tokens": 1}}


def silent(_line: str) -> None:
    pass


def do_register(root: Path) -> None:
    """As `stages.register`."""
    write_json(root / RECEIPT, register(load_params(root / "params.yaml"), silent, root))


def nothing(_root: Path) -> None:
    pass


def a_better_drafter(root: Path) -> None:
    trained = (root / "metrics/train/one.json").read_text()
    write_drafter(root, "one", weights="better")
    (root / "metrics/train/one.json").write_text(trained)
    write_figures(root, "one", length=2.2, speedup=1.6)


def a_later_evaluation(root: Path) -> None:
    write_figures(root, "one", length=2.3, speedup=1.7)
    write_plain(root / "reports/one/speculative_config.json", SETTINGS)


# name -> (what changes before, the work). Each begins where the one before it ended, but for `rollback`.
SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "register": (nothing, do_register),
    "register a better one": (a_better_drafter, do_register),
    "register a later evaluation": (a_later_evaluation, do_register),
    "promote": (nothing, lambda root: promote_by_hand(root, "2", True, silent)),
    "rollback": (nothing, lambda root: rollback(root, True, silent)),
}


class Moments:
    """Counts this process's writes from now on, and ends it at one of them. half: a file that was to be written is
    left empty."""

    def __init__(self, root: Path, last: int | None = None, half: bool = False) -> None:
        self.kinds: list[str] = []
        self._root, self._last, self._half = str(root), last, half
        self._busy, self._changed = threading.local(), False
        sys.addaudithook(self._audit)
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", self._statement)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", self._commit)

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            self._changed = True
            self._moment("row")

    def _commit(self, _connection: Any) -> None:
        if self._changed:
            self._changed = False
            self._moment("commit")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            name, _mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(name, str) and name.startswith(self._root):
                self._moment("file", name if flags & os.O_TRUNC else None)
        elif event in ("os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir") and self._below(arguments[0]):
            self._moment("file")

    def _below(self, name: Any) -> bool:
        return str(name).startswith(self._root)

    def _moment(self, kind: str, emptied: str | None = None) -> None:
        if getattr(self._busy, "now", False):
            return
        self.kinds.append(kind)
        if len(self.kinds) == self._last:
            if emptied and self._half:
                self._busy.now = True
                Path(emptied).write_bytes(b"")
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], Any], report: Path) -> tuple[int, Any]:
    """(exit status, what `work` returned) of a forked process; None where it was killed."""
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(120)  # a lock that blocks
            owner._ALONE = uuid.uuid4().hex  # an execution of its own, as any other process
            report.write_text(json.dumps(work()))
            code = 0
        except Exception:  # noqa: BLE001 (whatever it is, the parent must know)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status, json.loads(report.read_text()) if status == 0 else None


def state(root: Path) -> dict[str, Any]:
    """All that must be the same in the end, however it came about."""
    store = connect(root)
    model = store.client.get_registered_model(NAME)
    found = sorted(store.client.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version))
    receipt = root / RECEIPT
    return {
        "aliases": {alias: str(version) for alias, version in sorted(model.aliases.items())},
        "moving": model.tags.get(MOVING),
        "versions": {str(v.version): _version(store, v) for v in found},
        "receipt": json.loads(receipt.read_text()) if receipt.exists() else None,
        "logged": sorted(Counter(_contents(store)).items()),
        "running": len(store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'")),
        "left": sorted(p.name for p in (root / ".specdec").glob("model-*")),
    }


def left_over(root: Path) -> dict[str, Any]:
    """What a killed process left. Before the registered model was made there is nothing."""
    store = connect(root)
    if not store.client.search_registered_models():
        return {"versions": {}, "aliases": {}, "receipt": None}
    return state(root)


def _version(store: Store, version: Any) -> dict[str, Any]:
    own = {key: value for key, value in version.tags.items() if key != BY_HAND}  # it tells the time
    return {
        "tags": own,
        "by_hand": BY_HAND in version.tags,
        "card": version.description,
        "files": _files(store, version),
    }


def _files(store: Store, version: Any) -> dict[str, str]:
    """Hashes of the stored checkpoint, and of its serving settings, as they lie on the disk."""
    where = store.client.get_logged_model(logged_model(version)).artifact_location.removeprefix("file://")
    folder = Path(where) / "artifacts"
    names = [*(f"drafter/{name}" for name in CHECKPOINT), "evaluation/speculative_config.json"]
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names if (folder / n).exists()}


def _contents(store: Store) -> list[str]:
    found = store.client.search_logged_models([store.experiment_id])
    return [m.tags[CONTENT] for m in found if str(m.status) == "READY"]


def train(root: Path) -> None:
    """The runs that the registration goes on with."""
    params = load_params(root / "params.yaml")
    for name in params.drafters:
        with drafter_run(name, params, None) as run:
            write_plain(root / "metrics/train" / f"{name}.json", {"mlflow_run": run.run_id})


def main() -> None:
    root, seed, tries, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _do_not_wait_for_the_disk)
    report, chance = root.parent / "report", random.Random(seed)
    shutil.copytree(root, root.parent / "warm")
    os.chdir(root.parent / "warm")
    do_register(root.parent / "warm")  # what is imported and remembered before the forks is not in each of them
    os.chdir(root)
    assert in_child(lambda: train(root), report)[0] == 0

    ends: dict[str, dict[str, Any]] = {}
    moments: dict[str, list[str]] = {}
    for name, (before, work) in SCENARIOS.items():
        before(root)
        shutil.copytree(root, template(root, name))
        status, found = in_child(lambda work=work: live(root, work), report)
        assert status == 0
        ends[name] = found
        if not wanted or name in wanted:
            moments[name] = found["moments"]
            print(json.dumps({"scenario": name, **found}), flush=True)

    for number, (name, moment) in enumerate(spread(moments, tries, chance)):
        put_back(root, name)
        half, work = chance.random() < 0.5, SCENARIOS[name][1]
        status, _ = in_child(lambda m=moment, h=half, work=work: (Moments(root, m, h), work(root)), report)
        _, found = in_child(lambda name=name: again(root, name, ends[name]), report)
        tried = {"try": number, "scenario": name, "moment": moment, "half": half, "killed": status == signal.SIGKILL}
        print(json.dumps({**tried, **(found or {"left": None})}), flush=True)


def template(root: Path, name: str) -> Path:
    return root.parent / f"before {name}"


def put_back(root: Path, name: str) -> None:
    shutil.rmtree(root)
    shutil.copytree(template(root, name), root)
    os.chdir(root)


def live(root: Path, work: Callable[[Path], None]) -> dict[str, Any]:
    """A run that is let live: its moments, the state before and after it; a registration once more, too."""
    before = left_over(root)
    seen = Moments(root)
    work(root)
    kinds = list(seen.kinds)
    ends = [state(root)]
    if work is do_register:
        work(root)
        ends.append(state(root))
    return {"moments": kinds, "before": before, "ends": ends}


def again(root: Path, name: str, expected: dict[str, Any]) -> dict[str, Any]:
    """What a killed process left, and what is there after the work was done again."""
    left = left_over(root)
    if not (name == "rollback" and left == expected["ends"][0]):  # that was done: a second one would go back again
        SCENARIOS[name][1](root)
    return {"left": left, "after": state(root)}


def spread(moments: dict[str, list[str]], tries: int, chance: random.Random) -> list[tuple[str, int]]:
    """As many tries for each scenario; half of them at writes of files where there are any. Of each kind one out of
    each of so many equal parts: no step is without one."""
    found = []
    for number, (name, kinds) in enumerate(moments.items()):
        own = tries * (number + 1) // len(moments) - tries * number // len(moments)
        files = [i for i, kind in enumerate(kinds, 1) if kind == "file"]
        rows = [i for i, kind in enumerate(kinds, 1) if kind != "file"]
        of_files = own // 2 if len(files) > len(rows) else 0
        for places, count in ((files, of_files), (rows, own - of_files)):
            edges = [len(places) * i // count for i in range(count + 1)] if count else []
            found += [(name, places[chance.randrange(a, max(b, a + 1))]) for a, b in itertools.pairwise(edges)]
    return found


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # SIGKILL takes nothing out of the kernel's hands


if __name__ == "__main__":
    main()
