"""The packages whose documentation is read: where they are, their versions, their licences."""

import importlib.util
import platform
from importlib import metadata
from pathlib import Path

# Import name -> distribution. Read in this order; a row whose question was seen before is dropped.
PACKAGES = {
    "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "datasets": "datasets", "httpx": "httpx",
    "pydantic": "pydantic", "click": "click", "typer": "typer", "requests": "requests", "fsspec": "fsspec",
    "huggingface_hub": "huggingface_hub", "safetensors": "safetensors", "accelerate": "accelerate",
    "networkx": "networkx", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "rich": "rich",
    "jinja2": "Jinja2", "dvc": "dvc", "mlflow": "mlflow", "prefect": "prefect", "torch": "torch",
    "transformers": "transformers",
}  # fmt: skip


def package_root(name: str) -> Path | None:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)  # of a top-level name: nothing is imported
    return Path(spec.origin).parent if spec and spec.origin and spec.origin.endswith("__init__.py") else None


def versions() -> dict[str, str]:
    """What the conversations were made from: name -> version."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        if package_root(name):
            try:
                found[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                found[distribution] = "unknown"
    return found


def licence(distribution: str) -> str:
    """What the distribution's own metadata says about its licence, in a few words."""
    if distribution == "python":
        return "PSF-2.0"
    try:
        facts = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return "licence: see the project"
    named = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier", []) if c.startswith("License")]
    texts = [*facts.get_all("License-Expression", []), ", ".join(named), *facts.get_all("License", [])]
    short = (t for t in texts if 0 < len(t) < 80 and "\n" not in t)
    return next(short, "licence: see the project")
