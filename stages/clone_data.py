"""The conversations, at a pinned commit.

python -m stages.clone_data    ->  data/raw/train.jsonl, data/raw/source.json
"""

from pathlib import Path

from specdec.config import load_params
from specdec.data.pydocs import publish
from specdec.data.source import clone_file
from specdec.io import write_json
from stages import EMBEDDED_DATA, run, say

OUT = Path("data/raw")


def main() -> None:
    settings = load_params().clone_data
    url = settings.url
    if url == "embedded":
        say("collecting the documentation of the installed Python and its libraries")
        publish(EMBEDDED_DATA)
        url = str(EMBEDDED_DATA)
    source = clone_file(
        url,
        settings.revision,
        settings.file,
        OUT / "train.jsonl",
        Path(".specdec/clone"),
        settings.max_bad_share,
        say,
    )
    write_json(OUT / "source.json", source.as_dict() | {"url": settings.url})


if __name__ == "__main__":
    run(main)
