"""A client in a process of its own, to be killed: `python client_process.py URL KEY PROMPTS JOURNAL OUT`."""

import sys
from pathlib import Path

from pydantic import SecretStr

from specdec.io import read_jsonl
from specdec.synthesis import Capabilities, Endpoint, Journal, Recipe, Server, assemble, synthesize
from stages import run
from tests.settings import sampling
from tests.synthesis.scripted import TOKENS


def main() -> None:
    url, key, prompts, folder, out = sys.argv[1:]
    rows = list(read_jsonl(Path(prompts)))
    recipe = Recipe(sampling(), 100_000, {"weights": "w"}, TOKENS)
    endpoint = Endpoint(url, "base", "vllm", SecretStr(key), Capabilities())
    with Journal.open(Path(folder) / "journal.jsonl", {"sampling": "greedy"}) as journal:
        server = Server(url, lambda: endpoint, endpoint)
        synthesize(lambda: rows, journal, [server], recipe, max_failed_share=0.0, concurrency=4, say=print)
        assemble(journal, rows, 1, Path(out))


if __name__ == "__main__":
    run(main)
