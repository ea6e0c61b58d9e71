"""Training again, from the champion on, with the latest prompts beside the old ones; then the gates decide.

    python -m flows.retrain prompts.jsonl          a file of prompts, or a folder of such files

`params.yaml` states it: each file with its hash in `prepare_prompts.further_prompts`, and for each drafter of the
champion's method `training.warm_start: models:/NAME/VERSION`; the rest of it, comments too, stays. Then the
pipeline runs. The latest prompts are split by the same hash as the others, so drafters are measured on old and new
ones, told apart by category; so is the champion, which `compare` measures once more beside them, and which they must
beat.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from flows.alone import alone
from flows.pipeline import pipeline
from flows.server import keep_from_ctrl_c
from specdec.config import Params, load_params, validated
from specdec.data.further_prompts import conversations_of
from specdec.errors import DataError, SpecdecError
from specdec.io import sha256_file, write_text
from specdec.tracking.champion import champion_to_go_on_from
from specdec.tracking.store import project_root


@flow(name="retrain", persist_result=False)
def retrain(latest: Path) -> None:
    """Raises DataError where there are no prompts, and whatever the pipeline raises."""
    root = project_root()
    files = prompt_files(latest)
    with alone(root):  # before params.yaml changes under another run
        state_in_params(root / "params.yaml", latest, files, champion_to_go_on_from(root))
        pipeline()


def prompt_files(latest: Path) -> list[Path]:
    """The file, or those of the folder (`*.jsonl`, `*.json`), by name. Raises DataError when a row has no prompt."""
    if latest.is_dir():
        files = sorted(file for file in latest.iterdir() if file.suffix in (".jsonl", ".json") and file.is_file())
        if not files:
            raise DataError(f"{latest} holds no file of prompts (*.jsonl, *.json): put the latest ones there")
    else:
        files = [latest]
        if not latest.is_file():
            raise DataError(f"there is no file or folder of prompts {latest}: name another one")
    for file in files:
        for _ in conversations_of(file):
            pass
    return files


def state_in_params(file: Path, latest: Path, files: list[Path], champion: tuple[str, str] | None) -> None:
    """Files of the same folder, or the same file, that were stated before give way to `files`.

    champion: (its address, its method); None where there is none to go on from.
    """
    load_params(file)
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    prompts = content["prepare_prompts"]
    others = [e for e in prompts["further_prompts"] if latest not in (Path(e["path"]), Path(e["path"]).parent)]
    prompts["further_prompts"] = others + [{"path": str(f), "sha256": sha256_file(f)} for f in files]
    if champion is not None:
        address, method = champion
        for drafter in content["drafters"].values():
            if drafter["method"] == method:
                drafter["training"]["warm_start"] = address
    validated(Params, content, str(file))
    text = file.read_text(encoding="utf-8")
    text = _with(text, ("prepare_prompts", "further_prompts"), prompts["further_prompts"])
    for name, drafter in content["drafters"].items():
        text = _with(text, ("drafters", name, "training", "warm_start"), drafter["training"]["warm_start"])
    write_text(file, text)


def _with(text: str, path: tuple[str, ...], value: Any) -> str:
    """YAML with another value at `path`, as JSON, which is YAML; all around it stays as somebody wrote it."""
    if _at(yaml.safe_load(text), path) == value:
        return text
    node: Any = yaml.compose(text, yaml.SafeLoader)
    key: Any = None
    for name in path:
        key, node = next((k, v) for k, v in node.value if k.value == name)
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]  # a block ends where its last value does: its own mark is behind the comments
        node = last[1] if isinstance(last, tuple) else last
    return f"{text[: key.end_mark.index]}: {json.dumps(value, ensure_ascii=False)}{text[node.end_mark.index :]}"


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        content = content[name]
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latest", type=Path, help="prompts as they come in now")
    latest = parser.parse_args().latest
    keep_from_ctrl_c()
    try:
        retrain(latest)
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("specdec: error: interrupted: `make run` goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
