"""Packs a drafter as an MLflow model: the checkpoint as vLLM loads it, its proof, its base, and the code.

Each step can be killed: a model is found by its content, and used only when MLflow calls it READY.
"""

import functools
import importlib.metadata
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.config import Params
from specdec.errors import ModelError
from specdec.io import sha256_file, sha256_json, write_json
from specdec.room import need_room, size_of
from specdec.tracking.lineage import read_json
from specdec.tracking.recipe import write_recipe
from specdec.tracking.store import Store, if_there, speaking
from specdec.tracking.values import UNFINISHED

CONTENT, IDENTITY = "specdec.content", "specdec.identity"
CHECKPOINT = ("config.json", "model.safetensors")
_MODEL = re.compile(r"models:/(?P<id>m-\w+)")
SERVING = "speculative_config.json"  # of the benchmark in vLLM and of the evaluation: how to serve the drafter
_REQUIREMENTS = (
    "mlflow",
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pandas",
    "pydantic",
    "pyyaml",
    "jinja2",
    "filelock",
    "psutil",
)
_WORK = "model-"  # what a model is put together in
_left_out = shutil.ignore_patterns("__pycache__", "*.pyc", UNFINISHED)


@dataclass(frozen=True)
class Package:
    """What a version is made of.

    checkpoint: models/drafters/D. evaluation: reports/D. engine: engine/D, where the drafter was in a vLLM. base:
    models/base. bundle_base: whether the base's files travel too. dtype: what the base is loaded in, as it was when
    the drafter was measured. params: all settings. work: where the model is put together, a folder of the project's
    root.
    """

    drafter: str
    checkpoint: Path
    evaluation: Path
    engine: Path
    base: Path
    bundle_base: bool
    dtype: str
    params: Params
    work: Path

    @property
    def provenance(self) -> dict[str, Any]:
        """The base's `specdec.json`."""
        return read_json(self.base / "specdec.json")

    @functools.cached_property  # the weights are read once
    def identity(self) -> str:
        """sha256 over the checkpoint's bytes and the base's identity: the drafter, however it is packed."""
        return drafter_identity(self.checkpoint, self.provenance.get("identity"))

    def size(self) -> int:
        """Bytes, nearly."""
        parts = [self.checkpoint, self.evaluation, self.engine, *([self.base] if self.bundle_base else [])]
        return sum(map(size_of, parts))

    def content(self) -> str:
        """sha256 over the drafter and all that decides how its model loads: same content, same version."""
        packed = {"bundle_base": self.bundle_base, "dtype": self.dtype}
        return sha256_json({"drafter": self.identity, **packed})


def drafter_identity(checkpoint: Path, base: Any) -> str:
    """sha256 over the checkpoint's bytes and its base's identity: what the tag `specdec.identity` holds."""
    return sha256_json({"files": {name: _digest(checkpoint / name) for name in CHECKPOINT}, "base": base})


def _digest(file: Path) -> str:
    try:
        return sha256_file(file)
    except FileNotFoundError:
        raise ModelError(f"{file} is missing: run `dvc repro`, its training makes it") from None


def find_model(store: Store, content: str) -> str | None:
    """The id of a whole logged model with this content, if there is one."""
    found = _search(store, content)
    return next((m.model_id for m in found if str(m.status) == "READY"), None)


def log_model(store: Store, run_id: str, package: Package, tags: dict[str, str]) -> str:
    """Uploads the model and returns its id. Remains of an attempt that was killed are removed.

    Raises SpecdecError where the disk that it goes to has no room.
    """
    content = package.content()
    if store.location.artifacts is not None:
        need_room(store.location.artifacts, package.size(), f"the model of {package.drafter}")
    for broken in _search(store, content):
        if str(broken.status) != "READY":
            with speaking(store.location):
                store.client.delete_logged_model(broken.model_id)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=package.work) as folder, speaking(store.location):
        model = store.client.create_logged_model(
            store.experiment_id,
            name=package.drafter,
            source_run_id=run_id,
            tags={**tags, CONTENT: content},
            model_type="speculative-decoding",
        )
        _save(Path(folder), package, run_id, model.model_id)
        store.client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        store.client.finalize_logged_model(model.model_id, "READY")
        _point_from_run(store, run_id, model.model_id)
    return str(model.model_id)


def sweep(work: Path) -> None:
    """Removes what killed registrations left in `work`: with a bundled base, many gigabytes."""
    for left in work.glob(f"{_WORK}*"):
        shutil.rmtree(left, ignore_errors=True)


def put_serving_settings(store: Store, model_id: str, package: Package) -> None:
    """Gives a stored model the serving settings of a later benchmark or evaluation: the drafter is the same, and so
    is its version."""
    with speaking(store.location):
        for part, folder in (("engine", package.engine), ("evaluation", package.evaluation)):
            if (folder / SERVING).is_file():
                store.client.log_model_artifact(model_id, str(folder / SERVING), f"artifacts/{part}")


def logged_model(version: Any) -> str | None:
    """The id of the logged model behind a version; None for a version of someone else's, or one changed by hand.

    `version.model_id` comes back as None from some stores; the source always names the model.
    """
    named = _MODEL.fullmatch(str(version.source))
    return named["id"] if named else None


def has_checkpoint(store: Store, model_id: str, package: Package) -> bool:
    """Whether the stored model holds the checkpoint's files in their full size."""
    sizes = _stored(store, model_id)
    return all(sizes.get(name) == (package.checkpoint / name).stat().st_size for name in CHECKPOINT)


def holds_checkpoint(store: Store, version: Any) -> bool:
    """Whether a version still has its drafter's files, none of them empty."""
    model_id = logged_model(version)
    sizes = _stored(store, model_id) if model_id else {}
    return all(sizes.get(name) for name in CHECKPOINT)


def _stored(store: Store, model_id: str) -> dict[str, int]:
    """{file of the drafter: size}; empty where the logged model was deleted."""
    listed = if_there(store, lambda: store.client.list_logged_model_artifacts(model_id, "artifacts/drafter")) or []
    return {Path(file.path).name: file.file_size for file in listed}


def _search(store: Store, content: str) -> list[Any]:
    with speaking(store.location):
        condition = f"tags.`{CONTENT}` = '{content}'"
        return list(store.client.search_logged_models([store.experiment_id], condition))


def _point_from_run(store: Store, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])


def _save(folder: Path, package: Package, run_id: str, model_id: str) -> None:
    """Writes `folder/model` in MLflow's layout, from code.

    Nothing is pickled, and nothing is loaded to guess requirements (which takes minutes).
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path=str(folder / "model"),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        python_model=str(Path(__file__).with_name("speculative_model.py")),
        artifacts=_artifacts(folder, package),
        code_paths=[str(_code(folder))],
        signature=_signature(),
        input_example=(["How do I open a file?"], {"max_new_tokens": 32}),
        pip_requirements=requirements(),
    )


def _artifacts(folder: Path, package: Package) -> dict[str, str]:
    """The parts under the names that they keep in the model, as links where the file system can."""
    parts = {"drafter": package.checkpoint, "evaluation": package.evaluation}
    if package.engine.is_dir():
        parts["engine"] = package.engine
    if package.bundle_base:
        parts["base"] = package.base
    for name, source in parts.items():
        shutil.copytree(source, folder / name, copy_function=_link, ignore=_left_out)
    write_recipe(folder / "recipe", package.params, package.work.parent)
    base = package.provenance
    reference = {key: base.get(key) for key in ("name", "source", "revision", "identity")}
    write_json(folder / "base.json", {**reference, "path": str(package.base.resolve()), "dtype": package.dtype})
    return {**{name: str(folder / name) for name in (*parts, "recipe")}, "reference": str(folder / "base.json")}


def _link(source: str, target: str) -> None:
    """A hard link, or a copy across file systems; DVC's own links are followed (MLflow refuses symlinks)."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _code(folder: Path) -> Path:
    """The `specdec` package as it is now, without caches."""
    package = Path(__file__).resolve().parents[1]
    target = folder / "code" / package.name
    shutil.copytree(package, target, ignore=_left_out)
    return target


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

    # A prompt (text) or a conversation: MLflow has no type for "either", and checks nothing for `any`.
    inputs = Schema([ColSpec(AnyType())])
    outputs = Schema(
        [
            ColSpec("string", "text"),
            ColSpec("long", "tokens"),
            ColSpec("long", "steps"),
            ColSpec("double", "acceptance_length"),
        ]
    )
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", 128),
            ParamSpec("temperature", "double", 0.0),
            ParamSpec("top_k", "long", 0),
            ParamSpec("top_p", "double", 1.0),
            ParamSpec("seed", "long", 0),
        ]
    )
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)


def requirements() -> list[str]:
    """What is needed to load the model, pinned to what is installed here."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS]
