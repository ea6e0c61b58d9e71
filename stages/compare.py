"""The drafters of the run side by side: against none, prompt lookup, and the best of them.

python -m stages.compare    ->  comparison/
"""

import json
from pathlib import Path

from specdec.config import load_params
from specdec.evaluation import Bootstrap
from specdec.evaluation.bake_off import Entrant, bake_off
from specdec.io import read_jsonl, replacing_dir, write_json
from specdec.report import write_comparison
from stages import run, say

REPORTS = Path("reports")


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
    rows = bake_off(entrants, bootstrap)
    with replacing_dir(Path("comparison")) as folder:
        write_json(folder / "comparison.json", rows)
        write_comparison(rows, settings.confidence, folder)
    say(f"fastest: {rows[0]['name']}, {rows[0]['figures']['speedup']['value']:.2f} times plain decoding")


if __name__ == "__main__":
    run(main)
