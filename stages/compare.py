"""The drafters of the run side by side: against none, prompt lookup, the best of them, and the present champion.

python -m stages.compare    ->  comparison/, metrics/compared.json
"""

import json
from pathlib import Path
from typing import Any

from specdec.config import Evaluate, Params, load_params
from specdec.errors import ModelError
from specdec.evaluation import Bootstrap, Plan
from specdec.evaluation.bake_off import Entrant, bake_off
from specdec.evaluation.champion import measure_champion, other_base, same_drafter
from specdec.io import read_jsonl, replacing_dir, sha256_file, write_json
from specdec.report import write_comparison
from specdec.tracking.champion import PresentChampion, present_champion
from specdec.tracking.register import model_name
from stages import run, say

REPORTS, DRAFTERS, BASE = Path("reports"), Path("models/drafters"), Path("models/base")
TEST = Path("data/prompts/test.jsonl")
FETCHED = Path(".specdec/champion")
COMPARED = Path("metrics/compared.json")


def main() -> None:
    params = load_params()
    settings = params.evaluate
    entrants = [
        Entrant.parse(
            name,
            json.loads((REPORTS / name / "ways.json").read_text()),
            list(read_jsonl(REPORTS / name / "prompts.jsonl")),
        )
        for name in params.drafters
    ]
    bootstrap = Bootstrap(settings.bootstrap_samples, settings.confidence, settings.seed)
    champion, measured = _champion(params, bootstrap)
    say(champion["told"])
    rows = bake_off([*entrants, *measured], bootstrap, champion["row"])
    with replacing_dir(Path("comparison")) as folder:
        write_json(folder / "comparison.json", {"champion": champion, "rows": rows})
        write_comparison(rows, champion, settings.confidence, folder)
    # No word of the champion: what `register` depends on must not change with the registry, or comparing once more
    # would promote once more, whatever a person had rolled back.
    weights = {name: sha256_file(DRAFTERS / name / "model.safetensors") for name in params.drafters}
    write_json(COMPARED, {"drafters": weights})
    say(f"fastest: {rows[0]['name']}, {rows[0]['figures']['speedup']['value']:.2f} times plain decoding")


def _champion(params: Params, bootstrap: Bootstrap) -> tuple[dict[str, Any], list[Entrant]]:
    """(for `comparison.json`: which version, and by which row it is shown; what was measured of it)."""
    found = present_champion(params.register_.model_name or model_name(Path.cwd()), FETCHED)
    weights = None if found.folder is None else sha256_file(found.folder / "model.safetensors")
    record = {"model": found.model, "version": found.version, "sha256": weights, "row": None, "told": found.told}
    record["prompts"] = sha256_file(TEST)
    if found.folder is None:
        return record, []
    called = f"version {found.version} of {found.model}"
    try:
        if same := same_drafter(found.folder, {name: DRAFTERS / name for name in params.drafters}):
            return record | {"row": same, "told": f"champion = {same}: the same bytes are {called}"}, []
        if differs := other_base(found.folder, BASE):
            return record | {"told": f"the champion, {called}, was not measured: {differs}"}, []
        measured = _measured(found, params.evaluate, bootstrap)
    except ModelError as error:
        return record | {"told": f"the champion, {called}, was not measured: {error}"}, []
    told = f"the champion, {called}, was measured beside plain decoding as the drafters of the run were"
    return record | {"row": measured.name, "told": told}, [measured]


def _measured(found: PresentChampion, settings: Evaluate, bootstrap: Bootstrap) -> Entrant:
    assert found.folder
    plan = Plan(settings.max_new_tokens, settings.repeats, bootstrap)
    rows = list(read_jsonl(TEST))
    say(f"measuring version {found.version} of {found.model} on {len(rows)} prompts")
    name = f"champion (version {found.version})"  # no drafter of the run can be called so
    return measure_champion(name, found.folder, BASE, settings.dtype, rows, plan, say)


if __name__ == "__main__":
    run(main)
