"""Registration: every evaluated drafter becomes a version, and the gates decide which one is the champion.

Can be killed anywhere and run again: a version is found by what it contains, an alias is moved only to a
version whose checkpoint is there, and `registry.json` is written last.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from specdec.config import Params
from specdec.drafters.deployable.folder import base_facts, check_folder
from specdec.errors import DataError, ModelError, TrackingError
from specdec.io import sha256_file, sha256_json
from specdec.tracking import card, model
from specdec.tracking.approval import DECISION, GATE, WAITS, refusal_of
from specdec.tracking.executions import drafter_run
from specdec.tracking.gates import APPROVAL, Candidate, Decision, Figures, InEngine, decide
from specdec.tracking.lineage import lineage, read_json
from specdec.tracking.promotion import aliases_of, challenge, finish_move, promote
from specdec.tracking.rival import reigning
from specdec.tracking.runs import DrafterRun
from specdec.tracking.store import Store, connect, project_root, speaking

Say = Callable[[str], None]


def register(params: Params, say: Say = print, root: Path | None = None) -> dict[str, Any]:
    """Registers and promotes; returns the content of `registry.json`.

    Raises DataError or ModelError when an output of an earlier stage is missing, ModelError when a drafter is not
    what vLLM serves (`specdec.drafters.deployable`), TrackingError or
    TransientError when MLflow refuses or does not answer.
    """
    root = root or project_root()
    (root / ".specdec").mkdir(exist_ok=True)
    with FileLock(root / ".specdec" / "register.lock"):
        store = connect(root)
        name = params.register_.model_name or model_name(root)
        _ensure_registered(store, name, root)
        finish_move(store, name)
        model.sweep(root / ".specdec")
        receipts = {drafter: _version(store, name, drafter, params, root, say) for drafter in params.drafters}
        candidates = [candidate for candidate, _ in receipts.values()]
        rival = reigning(store, name, root, candidates[0].figures.conditions)
        decisions = decide(candidates, params.register_, rival)
        _apply(store, name, decisions, say)
        for d in decisions:
            with speaking(store.location):
                run_id = receipts[d.candidate.drafter][1]["run_id"]
                store.client.log_text(run_id, card.decision_page(name, d), "report/decision.md")
        aliases = aliases_of(store, name)
        versions = {
            d.candidate.drafter: {**receipts[d.candidate.drafter][1], **_aliased(d, aliases), **d.record()}
            for d in decisions
        }
        return {"model": name, "versions": versions}


def model_name(root: Path) -> str:
    """`specdec-<base>`, in the characters that every registry takes."""
    base = read_json(root / "models" / "base" / "specdec.json").get("name") or "base"
    return "specdec-" + re.sub(r"[^A-Za-z0-9._-]+", "-", str(base).rstrip("/").rpartition("/")[2]).strip("-")


def _version(
    store: Store, name: str, drafter: str, params: Params, root: Path, say: Say
) -> tuple[Candidate, dict[str, Any]]:
    """The version of one drafter: found by its content, or made."""
    package = model.Package(
        drafter=drafter,
        checkpoint=root / "models" / "drafters" / drafter,
        evaluation=root / "reports" / drafter,
        engine=root / "engine" / drafter,
        base=root / "models" / "base",
        bundle_base=params.register_.bundle_base,
        dtype=params.evaluate.dtype,
        params=params,
        work=root / ".specdec",
    )
    content = package.content()
    if wrong := check_folder(package.checkpoint, base_facts(package.base)):
        raise ModelError(f"{drafter} is none that vLLM can serve, and is not registered: {'; '.join(wrong)}")
    measured = root / "metrics" / "evaluate" / f"{drafter}.json"
    metrics = read_json(measured)
    in_engine = root / "metrics" / "engine" / f"{drafter}.json"
    engine = InEngine.parse(read_json(in_engine), str(in_engine))
    figures = Figures.parse(metrics, engine, _conditions(params, package, root), str(measured))
    tags = card.version_tags(drafter, read_json(package.checkpoint / "specdec.json"), figures, lineage(root))
    tags |= {model.CONTENT: content, model.IDENTITY: package.identity}
    trained = read_json(root / "metrics" / "train" / f"{drafter}.json").get("mlflow_run")
    with drafter_run(drafter, params, trained) as run:
        if run.run_id != trained:  # the run of the training is in another store: this one gets the figures
            run.log_metrics({"evaluate": metrics})
        # DVC may have restored them without an evaluation here, or MLflow was away then.
        run.log_artifacts(package.evaluation, "report")
        if package.engine.is_dir():
            run.log_artifacts(package.engine, "engine")
        version = _find_version(store, name, package, content)
        if version is None:
            version = _new_version(store, name, run, package, tags, figures, say)
        else:
            say(f"{drafter}: the same bytes are version {version} of {name} already")
            _refresh(store, name, version, tags, card.model_card(name, drafter, tags, figures, run.run_id), package)
        run.set_tags({"specdec.model": name, "specdec.version": version, model.CONTENT: content})
        receipt = {"version": version, "run_id": run.run_id, "content": content}
    with speaking(store.location):
        refused = refusal_of(store.client.get_model_version(name, version).tags)
    return Candidate(drafter, version, tags[model.IDENTITY], figures, refused), receipt


def _find_version(store: Store, name: str, package: model.Package, content: str) -> str | None:
    """The newest whole version with this content."""
    with speaking(store.location):
        found = store.client.search_model_versions(f"name = '{name}' and tags.`{model.CONTENT}` = '{content}'")
    newest_first = sorted(found, key=lambda v: -int(v.version))
    return next((str(v.version) for v in newest_first if _is_whole(store, v, package)), None)


def _is_whole(store: Store, version: Any, package: model.Package) -> bool:
    model_id = model.logged_model(version)
    return model_id is not None and str(version.status) == "READY" and model.has_checkpoint(store, model_id, package)


def _new_version(
    store: Store,
    name: str,
    run: DrafterRun,
    package: model.Package,
    tags: dict[str, str],
    figures: Figures,
    say: Say,
) -> str:
    model_id = model.find_model(store, tags[model.CONTENT])
    if model_id is None or not model.has_checkpoint(store, model_id, package):
        say(f"{package.drafter}: uploading the model")
        model_id = model.log_model(store, run.run_id, package, tags)
        if not model.has_checkpoint(store, model_id, package):
            raise TrackingError(f"the checkpoint did not arrive in {store.location.shown}: run it again")
    with speaking(store.location):
        # The content tag goes in with the version: there is no moment at which it has none.
        made = store.client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run.run_id,
            tags=tags,
            description=card.model_card(name, package.drafter, tags, figures, run.run_id),
            model_id=model_id,
        )
    say(f"{package.drafter}: registered as version {made.version} of {name}")
    return str(made.version)


def _refresh(
    store: Store, name: str, version: str, tags: dict[str, str], description: str, package: model.Package
) -> None:
    """Writes the figures and serving settings of a later evaluation to a version that is there."""
    with speaking(store.location):
        known = store.client.get_model_version(name, version)
        for key, value in tags.items():
            if known.tags.get(key) != value:
                store.client.set_model_version_tag(name, version, key, value)
        if known.description != description:
            store.client.update_model_version(name, version, description=description)
        model.put_serving_settings(store, str(known.source).removeprefix("models:/"), package)


def _ensure_registered(store: Store, name: str, root: Path) -> None:
    from mlflow.exceptions import MlflowException

    base = str(read_json(root / "models" / "base" / "specdec.json").get("name") or "the base")
    with speaking(store.location):
        try:
            store.client.create_registered_model(name, description=card.model_description(base))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _apply(store: Store, name: str, decisions: list[Decision], say: Say) -> None:
    """Moves the aliases, and writes each decision to its version."""
    for decision in decisions:
        version = decision.candidate.version
        words = {DECISION: decision.reason}
        gates = [g for g in decision.gates if g.gate != APPROVAL]  # a person has written that one
        words |= {card.gate_tag(g.gate): ("passed: " if g.passed else "missed: ") + str(g) for g in gates}
        words |= {GATE: WAITS} if decision.waits else {}
        with speaking(store.location):
            known = store.client.get_model_version(name, version).tags
            for key, value in words.items():
                store.client.set_model_version_tag(name, version, key, value)
            # What an earlier decision asked for and this one does not; but not what a person has said.
            for key, value in known.items():
                if key.startswith(card.GATES) and key not in words and (key != GATE or value == WAITS):
                    store.client.delete_model_version_tag(name, version, key)
        say(f"{decision.candidate.drafter}: {decision.reason}")
    others = [d for d in decisions if not d.promoted]
    if others:
        best = max(others, key=lambda d: (d.waits, all(g.passed for g in d.gates), d.candidate.figures.speedup.value))
        challenge(store, name, best.candidate.version)
    for decision in decisions:
        if decision.promoted:
            promote(store, name, decision.candidate.version)


def _aliased(decision: Decision, aliases: dict[str, str]) -> dict[str, Any]:
    return {"aliases": sorted(a for a, v in aliases.items() if v == decision.candidate.version)}


def _conditions(params: Params, package: model.Package, root: Path) -> str:
    """What the figures depend on beside the drafter."""
    prompts = root / "data" / "prompts" / "test.jsonl"
    if not prompts.is_file():
        raise DataError(f"{prompts} is missing: run `dvc repro` (prepare_prompts makes it)")
    measured = params.evaluate
    return sha256_json(
        {
            "prompts": sha256_file(prompts),
            "base": package.provenance.get("identity"),
            "max_new_tokens": measured.max_new_tokens,
            "dtype": measured.dtype,
        }
    )
