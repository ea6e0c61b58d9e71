"""`specdec.json`: that it is of this base, and that config.json still says what was trained."""

from collections.abc import Iterator
from typing import Any

from specdec.drafters.deployable.base import BaseFacts
from specdec.drafters.deployable.config import LAYER_IDS
from specdec.drafters.deployable.rules import equal, is_whole, said, shown
from specdec.drafters.dimensions import default_aux_layers

# Settings in `trained_as` that say the same as a key of config.json of another name.
_KEYS = {"num_layers": "num_hidden_layers", "shared_output_layer": "original_lm_head", "aux_layers": LAYER_IDS}


def record_findings(method: str, config: dict[str, Any], record: dict[str, Any], base: BaseFacts) -> Iterator[str]:
    """`specdec.json`: of this base, and of settings that say what config.json says."""
    if record.get("method") != method:
        yield f"specdec.json: method is {said(record, 'method')}, wanted {shown(method)}"
    count, heads = record.get("draft_tokens"), config.get("num_heads")
    if not is_whole(count):
        yield f"specdec.json: draft_tokens is {said(record, 'draft_tokens')}, wanted a whole number from 1"
    elif method == "medusa" and is_whole(heads) and count > heads:
        yield f"specdec.json: draft_tokens is {count}, wanted at most {heads}, the heads"
    trained_on = record.get("base")
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    for part, actual in (base.identity or {}).items():
        if trained_on.get(part) != actual:
            there = str(trained_on.get(part, "missing"))[:12]
            yield f"specdec.json: base.{part} is {there}, wanted {actual[:12]} as {base.name}'s: for another base"
    settings = record.get("trained_as")
    settings = dict(settings) if isinstance(settings, dict) else {}
    if method == "eagle3" and "aux_layers" in settings:
        settings["aux_layers"] = settings["aux_layers"] or list(default_aux_layers(base.num_layers))
    for setting, value in settings.items():
        key = _KEYS.get(setting, setting)
        if key in config and value is not None and not equal(config[key], value):
            yield (
                f"config.json: {key} is {shown(config[key])}, wanted {shown(value)} as specdec.json says in "
                f"trained_as.{setting}"
            )
