"""What MLflow keeps of this project and nobody needs: old versions, models without one, copies in old runs.

Touched are our registered model and our experiment alone.
"""

import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from specdec.config import load_params
from specdec.config.files import PARAMS
from specdec.room import Removal, size_of
from specdec.tracking.checkpoints import REGISTRY
from specdec.tracking.executions import DRAFTER, PROJECT
from specdec.tracking.keeping import Known, reasons_to_keep
from specdec.tracking.lineage import read_json
from specdec.tracking.model import CONTENT, logged_model
from specdec.tracking.promotion import aliases_of
from specdec.tracking.purge import (
    UNREGISTERED,
    database,
    every_version,
    local_folder,
    model_size,
    models_behind,
    pages,
    purge_model,
    purge_run,
    remove_model,
    remove_version,
)
from specdec.tracking.register import model_name
from specdec.tracking.release import promoted_by_hand
from specdec.tracking.store import Store, connect, if_there, locate, speaking

COPY = "drafter"  # in a run: a copy of the checkpoint that the training made
_ABANDONED = timedelta(days=1)  # a model without a version may be on its way to one, from another folder
_TRASH = timedelta(days=7)  # a run that a person deleted can be restored so long


@dataclass(frozen=True)
class Registry:
    """The project's registered model, as it was when this was made. versions: MLflow's. kept: {number: why}."""

    store: Store
    root: Path
    name: str
    versions: list[Any]
    kept: dict[int, str]
    aliased: frozenset[int]
    now: datetime

    @functools.cached_property
    def used(self) -> set[str]:
        """The logged models behind every version of every registered model."""
        return set().union(*(models_behind(version, self.every) for version in self.every.values()))

    @functools.cached_property
    def every(self) -> dict[tuple[str, str], Any]:
        return every_version(self.store)

    @functools.cached_property
    def runs_in_use(self) -> set[str]:
        """Runs that a version that stays was made in, of whatever model, or that the project's metrics name."""
        of_versions = {
            str(version.run_id)
            for (name, number), version in self.every.items()
            if name != self.name or int(number) in self.kept
        }
        return of_versions | {
            str(read_json(file).get("mlflow_run")) for file in (self.root / "metrics/train").glob("*.json")
        }


def registry_of(root: Path, newest: int, now: datetime | None = None) -> Registry | None:
    """None where the project has no registry yet. Raises ConfigError, TrackingError or TransientError."""
    file = locate(root).database
    if file is not None and not file.exists():  # `connect` would make it
        return None
    params = load_params(root / PARAMS)
    store, name = connect(root), params.register_.model_name or model_name(root)
    now = now or datetime.now(UTC)
    with speaking(store.location):
        known = if_there(store, lambda: store.client.get_registered_model(name)) is not None
        versions = list(pages(store.client.search_model_versions, f"name = '{name}'")) if known else []
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(aliases_of(store, name).items()) if known else ():
        aliases.setdefault(int(number), []).append(alias)
    warm_starts = {str(drafter.training.warm_start) for drafter in params.drafters.values()}
    registered = read_json(root / "registry.json")
    receipts = registered.get("versions", {}).values() if registered.get("model") == name else ()
    named = {int(receipt["version"]) for receipt in receipts}
    named |= {int(v.version) for v in versions if f"{REGISTRY}{name}/{v.version}" in warm_starts}
    copied = {str(v.source) for v in every_version(store).values()}  # MLflow's way to promote into another model
    named |= {int(v.version) for v in versions if f"{REGISTRY}{name}/{v.version}" in copied}
    all_known = [
        Known(
            int(v.version), logged_model(v) is not None, tuple(aliases.get(int(v.version), ())), promoted_by_hand(v)
        )
        for v in versions
    ]
    return Registry(
        store, root, name, versions, reasons_to_keep(all_known, newest, named, now), frozenset(aliases), now
    )


def registry_removals(registry: Registry, newest: int) -> Iterator[Removal]:
    """newest: so many of the project's runs keep their copy of the drafter."""
    yield from _old_versions(registry)
    yield from _models_without_version(registry)
    yield from _trash(registry)
    yield from _copies_in_runs(registry, newest)


def _old_versions(registry: Registry) -> Iterator[Removal]:
    for version in sorted(registry.versions, key=lambda v: int(v.version)):
        if int(version.version) not in registry.kept:
            model = str(logged_model(version))  # ours alone go
            yield Removal(
                f"version {version.version} of {registry.name} ({version.tags.get('specdec.drafter', '?')})",
                "older than the newest, no alias, not promoted by hand lately",
                model_size(registry.store, model),
                functools.partial(remove_version, registry.store, registry.name, str(version.version), model),
            )


def _models_without_version(registry: Registry) -> Iterator[Removal]:
    """What a killed clean, a killed registration or somebody who deleted a version in MLflow left behind."""
    store = registry.store
    with speaking(store.location):
        search = functools.partial(store.client.search_logged_models, [store.experiment_id])
        found = [m for m in pages(search) if CONTENT in m.tags and m.model_id not in registry.used]
    for model in found:
        marked = str(model.tags.get(UNREGISTERED, ""))
        old = registry.now - datetime.fromtimestamp(model.last_updated_timestamp / 1000, UTC) > _ABANDONED
        if marked.startswith(f"{registry.name}/") or (not marked and old):
            yield Removal(
                f"model {model.model_id} ({model.name})",
                "no version refers to it",
                model_size(store, model.model_id),
                functools.partial(remove_model, store, model.model_id),
            )


def _trash(registry: Registry) -> Iterator[Removal]:
    """Deleted in MLflow, with the files still there."""
    backend, store = database(registry.store), registry.store
    if backend is None:
        return
    with speaking(store.location):
        wait = int(_TRASH.total_seconds() * 1000)
        runs = [backend.get_run(run) for run in backend._get_deleted_runs(older_than=wait)]
        models = [backend.get_logged_model(m, allow_deleted=True) for m in backend._get_deleted_logged_models()]
    for run in runs:
        if str(run.info.experiment_id) == store.experiment_id and run.info.run_id not in registry.runs_in_use:
            yield Removal(
                f"run {run.info.run_id} ({run.info.run_name})",
                f"deleted in MLflow {_TRASH.days} days ago or earlier",
                size_of(local_folder(run.info.artifact_uri) or Path("/nonexistent")),
                functools.partial(purge_run, store, run.info.run_id),
            )
    for model in models:
        if str(model.experiment_id) == store.experiment_id and model.model_id not in registry.used:
            yield Removal(
                f"model {model.model_id} ({model.name})",
                "deleted in MLflow, its files are still there",
                size_of(local_folder(model.artifact_location) or Path("/nonexistent")),
                functools.partial(purge_model, store, model.model_id),
            )


def _copies_in_runs(registry: Registry, newest: int) -> Iterator[Removal]:
    """The figures, curves and reports of a run stay."""
    store = registry.store
    with speaking(store.location):
        ours = f"tags.`{PROJECT}` = '{str(registry.root).replace(chr(39), chr(39) * 2)}'"
        search = functools.partial(store.client.search_runs, [store.experiment_id], ours)  # newest first
        runs = [run for run in pages(search) if DRAFTER in run.data.tags]
    for run in runs[newest:]:
        folder = local_folder(run.info.artifact_uri)
        copy = folder / COPY if folder else None
        if copy is None or run.info.status == "RUNNING" or run.info.run_id in registry.runs_in_use:
            continue
        if copy.is_dir() and not copy.is_symlink():
            yield Removal(
                f"the drafter's copy in run {run.info.run_id} ({run.info.run_name})",
                "no version that stays was made in this old run; its figures stay",
                size_of(copy),
                functools.partial(shutil.rmtree, copy),
            )
