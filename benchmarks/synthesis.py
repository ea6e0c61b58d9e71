"""What the synthesis client costs, and what it holds.

    python -m benchmarks.synthesis throughput --base models/base [--engine vllm] [--concurrency 32] [--rows 256]
    python -m benchmarks.synthesis memory [--rows 10000 100000]

`throughput` starts a real server and lets three clients ask the same greedy prompts at the same concurrency, in turn:
specdec's, a plain asyncio loop with no features, and `vllm bench serve` where the engine is vLLM. `memory` runs
specdec's client against a scripted server, 1,000 requests in flight, once for each number of rows, each in a process
of its own, and prints rows/s and the peak of its resident memory.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from specdec.config import Environment, Sampling, Synthesize
from specdec.io import read_jsonl, write_jsonl
from specdec.serving import resolve_engine, serve
from specdec.synthesis import BaseTokens, Capabilities, Endpoint, Journal, Recipe, Server, assemble, synthesize

ROOT = Path(__file__).resolve().parents[1]
IN_FLIGHT = 1000
DELAY = 0.5  # of the scripted server
CLIENTS = ("specdec", "plain asyncio loop", "vllm bench serve")

Prompts = list[dict[str, Any]]


def main() -> None:
    options = _arguments()
    if options.what == "throughput":
        _throughput(options)
    elif options.what == "memory":
        _memory(options.rows)
    else:
        _client(options.url, options.rows, options.folder)


def _throughput(options: argparse.Namespace) -> None:
    prompts = _single_turns(options.prompts, options.rows)
    settings = _settings(options)
    environment = Environment(concurrency=options.concurrency)
    engine = resolve_engine(settings, environment)
    figures: dict[str, list[float]] = {name: [] for name in CLIENTS[: 3 if engine == "vllm" else 2]}
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(options.base, settings, environment, Path(folder) / "server.log", print) as servers,
    ):
        work = _Work(servers, prompts, settings, options, Path(folder))
        runs: list[Callable[[int], float]] = [work.specdec, work.plain, work.vllm_bench][: len(figures)]
        for number in range(options.rounds + 1):
            for name, run in _rotated(list(zip(figures, runs, strict=True)), number):
                figures[name].append(run(number))
                print(f"round {number}: {name} {figures[name][-1]:.0f} tokens/s", flush=True)
    _print_throughput(figures, engine, options)


def _rotated(clients: list[Any], number: int) -> list[Any]:
    """Each round begins with another client: whoever comes after another may profit from it."""
    start = number % len(clients)
    return clients[start:] + clients[:start]


def _print_throughput(figures: dict[str, list[float]], engine: str, options: argparse.Namespace) -> None:
    table = Table(title=f"{engine}, {options.rows} prompts, {options.concurrency} in flight, {options.rounds} rounds")
    for column in ("client", "output tokens/s (median)", "specdec's ratio to it (median, least of the rounds)"):
        table.add_column(column)
    ours = figures[CLIENTS[0]][1:]  # the first round warms up
    for name, all_rounds in figures.items():
        ratios = [a / b for a, b in zip(ours, all_rounds[1:], strict=True)]
        table.add_row(
            name, f"{statistics.median(all_rounds[1:]):.0f}", f"{statistics.median(ratios):.3f} ({min(ratios):.3f})"
        )
    Console(width=110).print(table)


class _Work:
    """The same prompts, asked in three ways. Each returns output tokens a second."""

    def __init__(
        self, servers: list[Server], prompts: Prompts, settings: Synthesize, options: argparse.Namespace, folder: Path
    ) -> None:
        assert servers[0].endpoint is not None
        self.servers, self.endpoint = servers, servers[0].endpoint
        self.prompts, self.settings, self.options, self.folder = prompts, settings, options, folder

    def specdec(self, number: int) -> float:
        """The whole thing: template ids, journal, checks."""
        recipe = Recipe(self.settings.sampling, self.settings.max_model_len, {}, BaseTokens.load(self.options.base))
        with Journal.open(self.folder / f"{number}.jsonl", {}) as journal:
            made = synthesize(
                lambda: self.prompts,
                journal,
                self.servers,
                recipe,
                max_failed_share=0.0,
                concurrency=self.options.concurrency,
                say=lambda _line: None,
            )
        return made.tokens / made.seconds()

    def plain(self, _number: int) -> float:
        """httpx and a semaphore."""
        return asyncio.run(self._plain())

    async def _plain(self) -> float:
        semaphore = asyncio.Semaphore(self.options.concurrency)
        async with httpx.AsyncClient(
            base_url=self.endpoint.url, headers=self.endpoint.headers(), timeout=None, limits=httpx.Limits()
        ) as http:

            async def ask(prompt: dict[str, Any]) -> int:
                body = {
                    "model": self.endpoint.model,
                    "messages": prompt["messages"],
                    "temperature": 0.0,
                    "max_tokens": self.settings.sampling.max_tokens,
                    **self.endpoint.capabilities.fields,
                }
                async with semaphore:
                    answer = await http.post("/v1/chat/completions", json=body)
                return len(answer.json()["choices"][0]["token_ids"])

            began = time.monotonic()
            tokens = sum(await asyncio.gather(*(ask(prompt) for prompt in self.prompts)))
            return tokens / (time.monotonic() - began)

    def vllm_bench(self, _number: int) -> float:
        """vLLM's own client, in its own environment."""
        data, out = self.folder / "prompts.jsonl", self.folder / "bench.json"
        write_jsonl(data, ({"prompt": p["messages"][-1]["content"]} for p in self.prompts))
        options = {
            "--backend": "openai-chat",
            "--endpoint": "/v1/chat/completions",
            "--base-url": self.endpoint.url,
            "--model": self.endpoint.model,
            "--dataset-name": "custom",
            "--dataset-path": str(data),
            "--custom-output-len": str(self.settings.sampling.max_tokens),
            "--num-prompts": str(len(self.prompts)),
            "--max-concurrency": str(self.options.concurrency),
            "--temperature": "0",
            "--result-dir": str(out.parent),
            "--result-filename": out.name,
        }
        flags = ["--skip-chat-template", "--disable-shuffle", "--save-result", "--disable-tqdm"]
        code = (
            "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
            "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
        )
        python = os.environ.get("SPECDEC_VLLM_PYTHON", sys.executable)
        key = self.endpoint.headers()["Authorization"].removeprefix("Bearer ")
        command = [python, "-c", code, *(part for pair in options.items() for part in pair), *flags]
        ran = subprocess.run(
            command, env={**os.environ, "OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        if ran.returncode:
            sys.exit(f"vllm bench serve failed:\n{ran.stdout[-1000:]}{ran.stderr[-3000:]}")
        return float(json.loads(out.read_text())["output_throughput"])


def _single_turns(file: Path, rows: int) -> Prompts:
    """One-turn prompts without a system turn, since that is what all three clients can ask."""
    prompts: Prompts = []
    for row in read_jsonl(file):
        message = next(m for m in row["messages"] if m["role"] == "user")
        prompts.append({"id": row["id"], "category": "", "messages": [message]})
        if len(prompts) == rows:
            return prompts
    sys.exit(f"{file} has only {len(prompts)} prompts: lower --rows")


def _sampling(max_tokens: int) -> Sampling:
    return Sampling.model_validate(
        {
            "samples": 1,
            "temperatures": [{"temperature": 0.0, "share": 1.0}],
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": max_tokens,
            "cut_off": "keep",
        }
    )


def _settings(options: argparse.Namespace) -> Synthesize:
    return Synthesize(
        engine=options.engine,
        engine_args=options.engine_arg,
        dtype=options.dtype,
        max_model_len=512,
        sampling=_sampling(options.max_tokens),
        max_failed_share=0.0,
    )


def _memory(rows: list[int]) -> None:
    table = Table(title=f"scripted server, {IN_FLIGHT} requests in flight")
    for column in ("rows", "seconds", "rows/s", "most at once", "peak memory of the client (MB)"):
        table.add_column(column, justify="right")
    for count in rows:
        with _scripted() as url, tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.synthesis", "client", "--url", url]
            ran = subprocess.run(
                [*command, "--rows", str(count), "--folder", folder], cwd=ROOT, capture_output=True, text=True
            )
            if ran.returncode:
                sys.exit(ran.stderr)
            seconds, peak = json.loads(ran.stdout.splitlines()[-1])
            most = httpx.get(f"{url}/most").json()
        table.add_row(f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}", str(most), f"{peak:.1f}")
        print(f"{count} rows: {seconds:.1f} s, {peak:.1f} MB", flush=True)
    Console(width=110).print(table)


class _scripted:
    """A scripted server in a process of its own; its URL."""

    def __enter__(self) -> str:
        command = [sys.executable, "-m", "benchmarks.scripted_server", str(DELAY)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()


def _client(url: str, rows: list[int], folder: Path) -> None:
    """One run of specdec's client, as the whole of this process: prints [seconds, peak megabytes]."""
    endpoint = Endpoint(url, "scripted", "external", None, Capabilities(token_ids=True))
    recipe = Recipe(_sampling(64), None, {}, None)
    with Journal.open(folder / "journal.jsonl", {}) as journal:
        made = synthesize(
            lambda: _rows(rows[0]),
            journal,
            [Server(url, lambda: endpoint, endpoint)],
            recipe,
            max_failed_share=0.0,
            concurrency=IN_FLIGHT,
            say=lambda _line: None,
        )
        found = assemble(journal, _rows(rows[0]), 1, folder / "out.jsonl")
    assert found.rows == rows[0]
    print(json.dumps([made.seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def _rows(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        content = f"question {number} " + "of many words " * 40
        yield {"id": f"{number:064x}", "category": "c", "messages": [{"role": "user", "content": content}]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    throughput = what.add_parser("throughput")
    throughput.add_argument("--base", type=Path, default=Path("models/base"))
    throughput.add_argument("--prompts", type=Path, default=Path("data/prompts/train.jsonl"))
    throughput.add_argument("--engine", default="auto", choices=("auto", "vllm", "transformers"))
    throughput.add_argument("--engine-arg", action="append", default=[], help="of the engine, e.g. --enforce-eager")
    throughput.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    throughput.add_argument("--rows", type=int, default=256)
    throughput.add_argument("--rounds", type=int, default=5)
    throughput.add_argument("--concurrency", type=int, default=32)
    throughput.add_argument("--max-tokens", type=int, default=80)
    what.add_parser("memory").add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    client = what.add_parser("client", help="used by `memory`")
    client.add_argument("--rows", type=int, nargs=1)
    client.add_argument("--url")
    client.add_argument("--folder", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
