"""The frozen base model, at a pinned revision.

python -m stages.fetch_base    ->  models/base/ (a Hugging Face checkpoint and its record, specdec.json)
"""

from pathlib import Path

from specdec.config import FetchBase, load_params
from specdec.data.pydocs import publish
from specdec.errors import ConfigError
from specdec.targets.embedded import EmbeddedSettings, build_base
from specdec.targets.fetch import copy_base, download_base, record_base
from stages import EMBEDDED_DATA, run, say

OUT = Path("models/base")


def main() -> None:
    settings = load_params().fetch_base
    revision = settings.revision
    if settings.source == "embedded":
        _build_embedded(settings)
    elif Path(settings.source).expanduser().is_dir():
        if revision is not None:
            raise ConfigError("fetch_base.revision is of the hub: set it to null with a local folder")
        copy_base(Path(settings.source).expanduser(), OUT, say)
    else:
        say(f"downloading {settings.source}")
        revision = download_base(settings.source, settings.revision, OUT, say)
    record_base(OUT, settings.source, revision, base_name(settings.source), say)


def base_name(source: str) -> str:
    """The last part of a path or repository name, in small letters: it names the registered model."""
    return "embedded" if source == "embedded" else Path(source).expanduser().resolve().name.lower()


def _build_embedded(settings: FetchBase) -> None:
    assert settings.embedded is not None  # the schema says so
    say("collecting the documentation of the installed Python and its libraries")
    publish(EMBEDDED_DATA)
    chosen = EmbeddedSettings(steps=settings.embedded.steps, seed=settings.embedded.seed)
    build_base(EMBEDDED_DATA / "train.jsonl", OUT, chosen, Path(".specdec/embedded-base"), say)


if __name__ == "__main__":
    run(main)
