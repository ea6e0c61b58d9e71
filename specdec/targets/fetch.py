"""Bringing a base model to a folder: from the hub at a pinned revision, or from a local folder."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from specdec.errors import ModelError, TransientError
from specdec.io import replacing_dir, write_json
from specdec.progress import while_waiting
from specdec.targets.identity import RECORD, compute_identity
from specdec.targets.loading import first_line, load_tokenizer
from specdec.targets.target import Target

# Weights as safetensors only, and no code.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md"]


def copy_base(source: Path, out: Path, say: Callable[[str], None]) -> None:
    """Copies a checkpoint folder's own files (safetensors, tokenizer, configuration), atomically."""
    with while_waiting(say, f"copying {source.name}"), replacing_dir(out) as aside:
        for pattern in PATTERNS:
            for file in sorted(source.glob(pattern)):
                shutil.copyfile(file, aside / file.name)
        (aside / RECORD).unlink(missing_ok=True)  # the source's own record, should it have one
        finish(aside)


def download_base(repository: str, revision: str | None, out: Path, say: Callable[[str], None]) -> str:
    """Downloads a hub repository at a revision to `out`; returns the commit. Downloads resume in the hub's cache.

    Raises ModelError when there is no such repository or revision, TransientError when the hub is out of reach.
    """
    with while_waiting(say, f"downloading {repository}"):
        snapshot = _download(repository, revision)
    copy_base(snapshot, out, say)
    return snapshot.name


def base_folder(name: str) -> Path:
    """A model's folder: the one that `name` is, or the hub cache's copy of that repository, fetched if need be."""
    folder = Path(name)
    return folder if folder.is_dir() else _download(name, None)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"{repository!r} is neither a folder here nor a model on the hub that you may read: check "
            "its name (fetch_base.source in params.yaml), and HF_TOKEN where the model is gated"
        ) from None
    except LocalEntryNotFoundError as error:
        raise TransientError(
            f"the Hugging Face hub could not be reached for {repository}, which is no folder here: "
            f"{first_line(error)}"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision!r}: check fetch_base.revision") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        kind = TransientError if status == 429 or status >= 500 else ModelError
        raise kind(f"{repository} at {revision} could not be fetched: {first_line(error)}") from None
    except _transport_error(HfHubHTTPError) as error:
        raise TransientError(f"the download of {repository} broke off: {first_line(error)}") from None


def _transport_error(hub_error: type[Exception]) -> type[Exception]:
    """The network errors of the HTTP client that huggingface_hub uses: httpx, and httpx2 from its version 2 on."""
    client = importlib.import_module(hub_error.__bases__[0].__module__)
    error: type[Exception] = client.TransportError
    return error


def finish(folder: Path) -> None:
    """Proves that a fetched folder is a base we can use. Raises ModelError."""
    config = folder / "config.json"
    if not config.exists():
        raise ModelError("fetch_base.source is no model: it has no config.json")
    try:
        json.loads(config.read_text())
    except ValueError:
        raise ModelError("fetch_base.source is no model: its config.json is not JSON") from None
    compute_identity(folder)
    _check_template(load_tokenizer(folder))


def _check_template(tokenizer: Any) -> None:
    """The chat template must render a question. Raises ModelError."""
    if not tokenizer.chat_template:
        raise ModelError(
            "the base's tokenizer has no chat template: choose a chat model, or add chat_template.jinja to its folder"
        )
    question = [{"role": "user", "content": "Hello"}]
    try:
        text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ModelError(
            f"the base's chat template fails on a user's question: mend its chat_template.jinja ({first_line(error)})"
        ) from None
    if "Hello" not in text:
        raise ModelError("the base's chat template leaves out the user's question: mend its chat_template.jinja")


def record_base(folder: Path, source: str, revision: str | None, name: str, say: Callable[[str], None]) -> None:
    """Loads the base once (it must be usable before anything is built on it) and writes its record."""
    with while_waiting(say, f"loading and hashing {name}"):
        target = Target.from_pretrained(folder, dtype="bfloat16", device="cpu")
        _check_template(target.tokenizer)
        identity = compute_identity(folder).as_dict()
    parameters = sum(p.numel() for p in target.model.parameters())
    say(f"{name}: {parameters / 1e6:,.1f}M parameters, {target.num_layers} layers, vocabulary {target.vocab_size}")
    record = {
        "source": source,
        "revision": revision,
        "name": name,
        "identity": identity,
        "parameters": parameters,
    }
    write_json(folder / RECORD, record)
