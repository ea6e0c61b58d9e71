"""Acceptance length three times over on the same prompts: in vLLM, in our own decoding, and as training counts it.

    python -m benchmarks.served [DRAFTER ...]

In the folder of a project whose stages `benchmark@D` ran with a vLLM. DRAFTER: all of params.yaml unless named. What
vLLM and our decoding made of the prompts is read from `metrics/engine/D.json`; training's count is taken here, over
the base's greedy answers to the same prompts, in the way by which a checkpoint is chosen (`training/acceptance.py`).
Intervals: bootstrap over prompts. The last column: the largest distance of two of the three.
"""

import json
import sys
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.quality import counted, interval, shown
from specdec.config import load_params
from specdec.decoding import generate
from specdec.drafters import load_drafter
from specdec.evaluation.statistics import Interval
from specdec.targets import Target
from stages.benchmark import BASE, DRAFTERS, measured_prompts


def main() -> None:
    params = load_params()
    names = sys.argv[1:] or list(params.drafters)
    figures = {name: json.loads(Path(f"metrics/engine/{name}.json").read_text()) for name in names}
    if skipped := [name for name in names if "skipped" in figures[name]]:
        sys.exit(f"{skipped[0]} was not measured in vLLM: {figures[skipped[0]]['skipped']}")
    target = Target.from_pretrained(BASE, dtype=params.benchmark.dtype)
    prompts, _ = measured_prompts(params.benchmark, target)
    answers = [(ids, generate(target, None, ids, params.benchmark.max_new_tokens).token_ids) for ids in prompts]
    table = Table(title=f"Acceptance length on {len(prompts)} prompts, {params.benchmark.dtype}")
    for column in ("drafter", "chain", "in vLLM", "our decoding", "training", "apart"):
        table.add_column(column, justify="left" if column == "drafter" else "right")
    for name in names:
        length = figures[name]["draft_tokens"]
        own = figures[name]["draft_lengths"][str(length)]
        drafter = load_drafter(DRAFTERS / name, target)
        found = [
            Interval(**own["acceptance_length"]),
            Interval(**own["predicted"]),
            interval(counted(target, drafter, answers, length)),
        ]
        apart = max(abs(one.value / other.value - 1) for one, other in combinations(found, 2))
        table.add_row(name, str(length), *map(shown, found), f"{apart:.1%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
