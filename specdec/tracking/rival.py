"""The champion that new drafters have to beat, with the figures that can be compared with theirs."""

import json
from pathlib import Path
from typing import Any

from specdec.io import sha256_file
from specdec.tracking import card, model
from specdec.tracking.gates import Champion, Interval
from specdec.tracking.lineage import read_json
from specdec.tracking.promotion import CHAMPION, aliases_of
from specdec.tracking.store import Store, speaking


def reigning(store: Store, name: str, root: Path, conditions: str) -> Champion | None:
    """The champion of a registered model; None where there is none.

    What the stage `compare` measured of this very version on this run's prompts counts, under the `conditions` of the
    run's drafters: a champion of older prompts is no easier to beat than one of today. Else its tags, as registered.
    """
    version = aliases_of(store, name).get(CHAMPION)
    if version is None:
        return None
    with speaking(store.location):
        tags = store.client.get_model_version(name, version).tags
    identity = tags.get(model.IDENTITY)
    if measured := _measured(root, name, version):
        return Champion(version, measured[0], conditions, identity, measured[1])
    base = read_json(root / "models" / "base" / "specdec.json").get("identity") or {}
    trained_on = tags.get("specdec.base.weights")
    return Champion(
        version,
        card.figure_of(tags.get("specdec.speedup.value")),
        tags.get("specdec.conditions"),
        identity,
        card.categories_of(tags.get("specdec.categories")),
        # One that somebody made the champion without being a drafter of ours cannot be measured either.
        other_base=identity is None or (trained_on is not None and trained_on != base.get("weights")),
    )


def _measured(root: Path, name: str, version: str) -> tuple[float, dict[str, Interval]] | None:
    """(speedup, acceptance length by category) out of `comparison/comparison.json`.

    DVC does not know that registration reads it: who reigns must not make a stage stale (see `stages.compare`). So
    the file says itself what it is about.
    """
    try:
        found = json.loads((root / "comparison" / "comparison.json").read_text(encoding="utf-8"))
        champion: dict[str, Any] = found["champion"]
        about = (champion["model"], champion["version"], champion["prompts"])
        if about != (name, version, sha256_file(root / "data" / "prompts" / "test.jsonl")):
            return None
        (row,) = [r for r in found["rows"] if r["name"] == champion["row"]]
        categories = {k: Interval.parse(v["acceptance_length"]) for k, v in row["figures"]["categories"].items()}
        return float(row["figures"]["speedup"]["value"]), categories
    except (OSError, KeyError, TypeError, ValueError):
        return None
