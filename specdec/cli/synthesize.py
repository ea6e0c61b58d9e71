"""`specdec synthesize`: a file of conversations, answered by a server that runs. No pipeline around it.

The journal is `OUTPUT.journal`, beside the output; `--resume` goes on with it. It stays, as the record of what made
the output, until somebody deletes it. The output itself appears whole, at the end.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.cli.options import naming_options
from specdec.config import Environment, Sampling, parse_urls, validated
from specdec.data.conversations import RowCount, read_conversations
from specdec.data.prompts import make_prompt
from specdec.errors import ConfigError, DataError
from specdec.io import sha256_file, write_json
from specdec.serving import connect_servers
from specdec.synthesis import BaseTokens, Journal, Recipe, Server, assemble, count_missing, synthesize

ALL_TURNS = sys.maxsize

# Parameters of the command -> settings of `sampling`.
_SAMPLING = {
    "samples": "samples",
    "temperature": "temperatures",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_tokens": "max_tokens",
    "cut_off": "cut_off",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asks for. base: a folder with the base's tokenizer, for servers that give no token ids.

    options: {parameter: its option, as it was typed}.
    urls: comma-separated. max_model_len: tokens of prompt and answer together; None is the server's own limit.
    """

    data: Path
    output: Path
    urls: str
    model: str | None
    base: Path | None
    system_prompt: str | None
    sampling: dict[str, Any]
    max_model_len: int | None
    max_failed_share: float
    concurrency: int | None
    metrics: Path | None
    resume: bool
    options: dict[str, str]


def answer_file(request: Request, say: Say) -> None:
    """Raises a SpecdecError, with what was answered kept in the journal."""
    options = {setting: request.options[name] for name, setting in _SAMPLING.items()}
    with naming_options(options):
        sampling = validated(Sampling, request.sampling, "command line", options)
    journal_file = _journal_file(request)
    before = _state(request.data)
    settings = _settings(request, sampling)
    with Journal.open(journal_file, settings) as journal:
        try:
            _answer(request, sampling, settings, journal, say)
            if _state(request.data) != before:
                raise DataError(f"{request.data} changed while it was answered: restore it, and go on with --resume")
            data = assemble(journal, _prompts(request), sampling.samples, request.output).figures()
        except BaseException:
            if journal.empty:  # else a first attempt that was refused would stand in the way of the next one
                journal_file.unlink()
            raise
        if request.metrics:
            last = journal.runs[-1] if journal.runs else None
            write_json(request.metrics, {"data": data, "last_run": last, "runs": len(journal.runs)})
    say(f"{request.output}: {data['rows']} rows, {data['answer_tokens']} answer tokens, {data['finish_reasons']}")
    if data["rows_missing"]:
        say(f"{data['rows_missing']} rows have no answer: --resume asks for them again")


def _journal_file(request: Request) -> Path:
    if not request.data.is_file():
        raise DataError(f"{request.data} is no file: name a file of conversations with --data")
    for file in filter(None, (request.output, request.metrics)):
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise ConfigError(f"{file} cannot be written: name a file in a folder that is there")
    journal = request.output.with_name(f"{request.output.name}.journal")
    if not request.resume and journal.exists():
        raise ConfigError(f"{journal} holds the answers of an earlier run: go on with --resume, or delete it")
    if not request.resume and request.output.exists():
        raise ConfigError(f"{request.output} is there already: delete it, or name another file with --output")
    if request.max_model_len and not request.base:
        raise ConfigError("--max-model-len needs --base, whose tokenizer counts; without it the server judges")
    return journal


def _state(data: Path) -> tuple[int, int]:
    """What changes with a file: its size and the time of its last change."""
    stat = data.stat()
    return stat.st_size, stat.st_mtime_ns


def _settings(request: Request, sampling: Sampling) -> dict[str, Any]:
    """What decides the answers, as far as it was stated, and the file whose rows they belong to."""
    return {
        "sha256 of the data": sha256_file(request.data),
        "model": request.model,
        "system_prompt": request.system_prompt,
        "max_model_len": request.max_model_len,
        "sampling": sampling.model_dump(),
        "base": _identity(request.base) if request.base else None,
    }


def _identity(base: Path) -> dict[str, str]:
    from specdec.targets import identify  # torch, which nothing else here needs

    return identify(base).as_dict()


def _answer(request: Request, sampling: Sampling, settings: dict[str, Any], journal: Journal, say: Say) -> None:
    """Asks for what the journal lacks; no server is needed where that is nothing."""
    total, missing = _count(request, sampling.samples, journal, say)
    say(f"{total} rows, {total - missing} of them answered before")
    if not missing:
        return
    servers = _servers(request, sampling, say)
    base = settings["base"] or {"model": _model(servers)}
    tokens = BaseTokens.load(request.base) if request.base else None
    synthesize(
        lambda: _prompts(request),
        journal,
        servers,
        Recipe(sampling, request.max_model_len, base, tokens),
        max_failed_share=request.max_failed_share,
        concurrency=request.concurrency,
        say=say,
    )


def _servers(request: Request, sampling: Sampling, say: Say) -> list[Server]:
    environment = Environment.read()
    servers = connect_servers(
        parse_urls(request.urls, "--url"),
        environment.api_key,
        sampling,
        say,
        model_name=request.model,
        base=request.base,
        engine="auto",
        max_model_len=request.max_model_len,
        seeds=environment.server_seeds,
    )
    for server in servers:
        if not request.base and server.endpoint and not server.endpoint.capabilities.token_ids:
            raise ConfigError(
                f"{server.url} gives no token ids: name the base's folder, with its tokenizer, in --base"
            )
    return servers


def _model(servers: list[Server]) -> str:
    """The names under which it is served."""
    return ", ".join(sorted({server.endpoint.model for server in servers if server.endpoint}))


def _count(request: Request, samples: int, journal: Journal, say: Say) -> tuple[int, int]:
    """Counts the rows, and says which cannot be used."""
    count = RowCount()
    found = count_missing(_prompts(request, count), samples, journal)
    if not found[0]:
        kinds = ", ".join(f"{number} x {kind}" for kind, number in count.bad.most_common())
        raise DataError(
            f"{request.data} has no conversation in its {count.rows} rows ({kinds or 'empty'}): rows hold `messages` "
            "or `conversations`, as JSONL or one JSON array"
        )
    if count.bad:
        lines = ", ".join(f"{line} ({kind})" for line, kind in count.bad_lines[:10])
        say(f"warning: {count.bad.total()} of {count.rows} rows are no conversation and get no answer: lines {lines}")
    return found


def _prompts(request: Request, count: RowCount | None = None) -> Iterator[dict[str, Any]]:
    """The rows as prompts, in the file's order, each with an id of its own (a row that stands twice is two)."""
    numbers = itertools.count(1)
    for conversation in read_conversations(request.data, count or RowCount()):
        prompt = make_prompt(conversation, ALL_TURNS)
        messages = prompt.messages
        if request.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": request.system_prompt}, *messages]
        yield {"id": f"{next(numbers):08d}-{prompt.id[:16]}", "category": prompt.category, "messages": messages}


def plain(line: str) -> None:
    """One progress line, with the time of day: such a run may take days, and outlive the reader of its output."""
    try:
        print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open as long as we run
