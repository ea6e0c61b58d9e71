"""What vLLM is to draft with a drafter: the chain that was measured or predicted to be fastest, or its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.drafters.deployable.folder import method_of
from specdec.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Speculation:
    """config: vLLM's `--speculative-config`; None: no drafter is to be used. why: in a few words, for people."""

    config: dict[str, Any] | None
    why: str


def choose_speculation(
    drafter: Path, measured: Path | None, predicted: Path | None, concurrency: int, draft_tokens: int | None = None
) -> Speculation:
    """For `concurrency` sequences at once. drafter: a folder that `check_folder` found right. measured, predicted:
    files of settings, of a benchmark in vLLM and of the evaluation; the first that is there counts. draft_tokens: the
    chain, whatever they say.

    Raises ModelError for settings that are damaged or another drafter's, ConfigError for a chain that is too long.
    """
    config, record = (json.loads((drafter / name).read_text()) for name in ("config.json", "specdec.json"))
    method = method_of(config, record)
    most = config["num_heads"] if method == "medusa" else None
    if draft_tokens is not None:
        if most and draft_tokens > most:
            raise ConfigError(f"--draft-tokens is {draft_tokens}, and {drafter} drafts {most} at most: its heads")
        return Speculation(_config(method, drafter, draft_tokens), "as --draft-tokens says")
    for file, how in ((measured, "measured in vLLM"), (predicted, "predicted by the evaluation")):
        if file and file.is_file():
            size, entry = _nearest(file, concurrency)
            why = f"{how} at {size} sequence{'s' if size > 1 else ''} at once"
            return Speculation(entry and _of(file, entry, method, drafter, most), why)
    return Speculation(_config(method, drafter, record["draft_tokens"]), "the drafter's own chain: nothing measured")


def _config(method: str, drafter: Path, tokens: int) -> dict[str, Any]:
    return {"method": method, "model": str(drafter), "num_speculative_tokens": tokens}


def _nearest(file: Path, concurrency: int) -> tuple[int, dict[str, Any] | None]:
    """The entry of the largest number up to `concurrency`, else of the smallest, and that number."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = {int(size): entry for size, entry in content.items()}
    except (OSError, ValueError, AttributeError):
        entries = {}
    if not entries or not all(entry is None or isinstance(entry, dict) for entry in entries.values()):
        raise ModelError(
            f"{file} is damaged, wanted vLLM's settings by sequences at once: evaluate the drafter again"
        )
    size = max((size for size in entries if size <= concurrency), default=min(entries))
    return size, entries[size]


def _of(file: Path, entry: dict[str, Any], method: str, drafter: Path, most: int | None) -> dict[str, Any]:
    """What the entry says of this drafter, which lies in another folder now."""
    tokens = entry.get("num_speculative_tokens")
    if entry.get("method") != method or type(tokens) is not int or not 1 <= tokens <= (most or tokens):
        raise ModelError(
            f"{file} is not of {drafter} ({method}{f' of {most} heads' if most else ''}): it says "
            f"{entry.get('method')} and {tokens} tokens; evaluate the drafter again, or give --draft-tokens"
        )
    return _config(method, drafter, tokens)
