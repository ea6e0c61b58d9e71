"""Registers every evaluated drafter in MLflow and promotes the best that passes the gates.

    python -m stages.register

In:  models/drafters/D/, reports/D/, metrics/{train,evaluate}/D.json for every drafter D, models/base/,
     data/prompts/test.jsonl, the sections `register` and `drafters` of params.yaml
Out: registry.json: which version each drafter is, and why it was or was not promoted
"""

from pathlib import Path

from specdec.config import load_params
from specdec.io import write_json
from specdec.tracking.register import register
from stages import run, say

REGISTRY = Path("registry.json")


def main() -> None:
    """Same bytes, same version: running it again changes nothing."""
    write_json(REGISTRY, register(load_params(), say))


if __name__ == "__main__":
    run(main)
