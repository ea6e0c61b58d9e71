"""The states of token sequences from a vLLM with our connector: asked for over HTTP, read from its files."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from specdec.errors import ModelError, RequestRefused, ServerError
from specdec.serving.vllm import RunningVllm

IN_FLIGHT = 32  # sequences asked for at once; as many files lie in the folder at most
REQUEST_SECONDS = 1800.0
FILE_SECONDS, POLL_SECONDS = 60.0, 0.005  # vLLM writes a file in the step behind the answer


@dataclass(frozen=True)
class Shape:
    """What a file's states must be: states[T, layers, width] of `dtype`."""

    layers: int
    width: int
    dtype: torch.dtype


async def fetch_states(
    server: RunningVllm, folder: Path, sequences: Sequence[list[int]], shape: Shape
) -> list[Tensor]:
    """states[T, layers, width] of each sequence of token ids, in their order; their files are removed.

    folder: where the server's connector writes. Raises ServerError (died, or wrote something else), RequestRefused
    or ModelError (states that are not finite).
    """
    turns = asyncio.Semaphore(IN_FLIGHT)
    http = httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=httpx.Timeout(REQUEST_SECONDS, connect=10.0),
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    )

    async def one(token_ids: list[int]) -> Tensor:
        async with turns:
            file = folder / await _ask(http, server, token_ids)
            try:
                await _appeared(file)
                return await asyncio.to_thread(read_states, file, token_ids, shape)
            finally:
                file.unlink(missing_ok=True)

    async with http:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(ids)) for ids in sequences]
        except* (ServerError, RequestRefused, ModelError) as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask(http: httpx.AsyncClient, server: RunningVllm, token_ids: list[int]) -> str:
    """The name of the file that will hold the states."""
    request = {"model": server.model, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0}
    try:
        response = await http.post("/v1/completions", json=request)
    except httpx.HTTPError as error:
        raise ServerError(f"{server.url} broke off: {str(error) or type(error).__name__}") from None
    if response.status_code != 200:
        kind = ServerError if response.status_code >= 500 else RequestRefused
        raise kind(
            f"{server.url} refuses {len(token_ids)} tokens (HTTP {response.status_code}): {response.text[:300]}"
        )
    try:
        name = response.json()["kv_transfer_params"]["states"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or Path(name).name != name:
        raise RequestRefused(f"{server.url} answers without a file of states: it runs without specdec's connector")
    return name


async def _appeared(file: Path) -> None:
    until = time.monotonic() + FILE_SECONDS
    while not file.exists():
        if time.monotonic() > until:
            raise ServerError(f"{file} is not there {FILE_SECONDS:.0f} s after vLLM's answer: see vLLM's log")
        await asyncio.sleep(POLL_SECONDS)


def read_states(file: Path, token_ids: list[int], shape: Shape) -> Tensor:
    """states[T, layers, width] of these tokens. Raises ServerError for a file of anything else, ModelError for states
    that are not finite."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ServerError(f"{file}, which vLLM has written, cannot be read: {error}") from None
    wanted = {
        "token_ids": ([len(token_ids)], torch.int64),
        "states": ([len(token_ids), shape.layers, shape.width], shape.dtype),
    }
    for name, (size, dtype) in wanted.items():
        tensor = found.get(name)
        told = "nothing" if tensor is None else f"{_name(tensor.dtype)}{list(tensor.shape)}"
        if tensor is None or list(tensor.shape) != size or tensor.dtype is not dtype:
            raise ServerError(f"{file}, which vLLM has written, holds {told} as {name}: wanted {_name(dtype)}{size}")
    if found["token_ids"].tolist() != token_ids:
        raise ServerError(f"{file}, which vLLM has written, is of other tokens than those that were asked for")
    states = found["states"]
    bad = (~states.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ModelError(
            f"vLLM's states are not finite at {len(bad)} of {len(token_ids)} positions (the first: {bad[0]}): it has "
            f"not computed them (is prefix caching on?), or they do not fit {_name(shape.dtype)} (try another dtype)"
        )
    return states


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
