"""Training again, from the champion on, with the latest prompts beside the old ones; then the gates decide.

    python -m flows.retrain prompts.jsonl

`params.yaml` states it: the file with its hash in `prepare_prompts.further_prompts`, and for each drafter of the
champion's method `training.warm_start: models:/NAME/VERSION`; `git diff` shows it. Then the pipeline runs. The latest
prompts are split by the same hash as the others, so drafters are evaluated on old and new ones, told apart by category.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from flows.pipeline import pipeline
from specdec.config import Params, load_params, validated
from specdec.data.prompt_files import read_prompt_file
from specdec.errors import SpecdecError
from specdec.io import sha256_file, write_text
from specdec.tracking.champion import champion_to_go_on_from
from specdec.tracking.store import project_root


@flow(name="retrain", persist_result=False)
def retrain(latest: Path) -> None:
    """Raises DataError where the file holds no prompts, and whatever the pipeline raises."""
    root = project_root()
    read_prompt_file(latest)
    state_in_params(root / "params.yaml", latest, champion_to_go_on_from(root))
    pipeline()


def state_in_params(file: Path, latest: Path, champion: tuple[str, str] | None) -> None:
    """champion: (its address, its method); None where there is none to go on from."""
    load_params(file)
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    entry = {"path": str(latest), "sha256": sha256_file(latest)}
    prompts = content["prepare_prompts"]
    prompts["further_prompts"] = [e for e in prompts["further_prompts"] if e["path"] != entry["path"]] + [entry]
    if champion is not None:
        address, method = champion
        for drafter in content["drafters"].values():
            if drafter["method"] == method:
                drafter["training"]["warm_start"] = address
    validated(Params, content, str(file))
    header = f"# Written by `python -m flows.retrain {latest.name}`; `git diff` shows what changed.\n"
    write_text(file, header + yaml.safe_dump(content, sort_keys=False, width=110))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latest", type=Path, help="prompts as they come in now")
    try:
        retrain(parser.parse_args().latest)
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
