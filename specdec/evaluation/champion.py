"""The present champion beside the drafters of a run: measured once more, or known to be one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdec.drafters import PROVENANCE, load_drafter
from specdec.errors import ModelError
from specdec.evaluation.bake_off import Entrant
from specdec.evaluation.measure import encode
from specdec.evaluation.plan import Plan, main_way, plain_way
from specdec.evaluation.ways import measure_ways
from specdec.io import sha256_file
from specdec.targets import Target
from specdec.targets.identity import identify

_CHECKPOINT = ("config.json", "model.safetensors")
_ALSO = ("method", "base", "draft_tokens")  # of the record beside it: what else decides how it is measured


def same_drafter(folder: Path, drafters: dict[str, Path]) -> str | None:
    """The name of the drafter whose checkpoint has the same bytes, and the same base and draft length."""
    return next((name for name, other in drafters.items() if _same(folder, other)), None)


def other_base(folder: Path, base: Path) -> str | None:
    """In what the base that a drafter was trained for differs from this one; None where it is this one.

    Raises ModelError when the folder has no readable record of it.
    """
    trained_on = _record(folder).get("base")
    if not isinstance(trained_on, dict):
        raise ModelError(f"{folder / PROVENANCE} names no base: register the drafter again")
    for part, actual in identify(base).as_dict().items():
        if trained_on.get(part) != actual:
            return (
                f"it was trained for another base: its {part.replace('_', ' ')} ({str(trained_on.get(part))[:12]}) "
                f"differ from those of {base} ({actual[:12]})"
            )
    return None


def measure_champion(
    name: str,
    folder: Path,
    base: Path,
    dtype: str,
    rows: list[dict[str, Any]],
    plan: Plan,
    say: Callable[[str], None],
) -> Entrant:
    """The main way of this drafter and plain decoding in turn, on the held-out rows, as `evaluate` measures them.

    Raises ModelError when it cannot be loaded on this base, DataError when no prompt fits the base.
    """
    target = Target.from_pretrained(base, dtype=dtype)
    drafter = load_drafter(folder, target)
    prompts, _ = encode(target, rows, plan.max_new_tokens, say)
    main = main_way(drafter)
    measured, figures = measure_ways(target, [plain_way(), main], prompts, plan, say)
    return Entrant(name, main.name, figures, measured)


def _same(folder: Path, other: Path) -> bool:
    if any(sha256_file(folder / name) != sha256_file(other / name) for name in _CHECKPOINT):
        return False
    ours, theirs = _record(folder), _record(other)
    return all(ours.get(key) == theirs.get(key) for key in _ALSO)


def _record(folder: Path) -> dict[str, Any]:
    """The drafter's `specdec.json`. Raises ModelError where there is none that can be read."""
    try:
        record = json.loads((folder / PROVENANCE).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / PROVENANCE} cannot be read ({error}): register the drafter again") from None
    if not isinstance(record, dict):
        raise ModelError(f"{folder / PROVENANCE} is no object: register the drafter again")
    return record
