"""The body of a request: every sampling setting stated, nothing left to a server's default."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.config import Sampling
from specdec.synthesis.endpoint import Endpoint

CHAT = "/v1/chat/completions"

Message = Mapping[str, str]


def chat_body(
    endpoint: Endpoint, messages: Sequence[Message], sampling: Sampling, seed: int | None = None
) -> dict[str, Any]:
    """The JSON of one chat completion."""
    body = {
        "model": endpoint.model,
        "messages": list(messages),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        **endpoint.capabilities.fields,
    }
    return body if seed is None else {**body, "seed": seed}


def wished_fields(engine: str, base: Path, sampling: Sampling) -> dict[str, Any]:
    """What we would like to send beyond the standard fields; the probe finds out which of it a server
    takes."""
    if engine == "transformers":
        return {"return_token_ids": True, "generation_config": generation_config(base, sampling)}
    return {"return_token_ids": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def generation_config(base: Path, sampling: Sampling) -> str:
    """The whole generation config that `transformers serve` shall use, as the JSON text that it expects.

    Without it a temperature above 0 alone leaves `do_sample` off, so the answers would be greedy, and the
    base's own `generation_config.json` (a repetition penalty, a top_k) would silently shape them.
    """
    greedy = sampling.temperature == 0
    config = {
        "do_sample": not greedy,
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "max_new_tokens": sampling.max_tokens,
        **{key: value for key in SPECIAL_IDS if (value := _base_setting(base, key)) is not None},
    }
    return json.dumps(config)


SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def row_seed(row_id: str, turn: int) -> int:
    """A seed in [0, 2^31) that depends on nothing but the row and the turn."""
    return int.from_bytes(hashlib.sha256(f"{row_id}/{turn}".encode()).digest()[:4]) >> 1


def _base_setting(base: Path, key: str) -> Any:
    """A value of the base's `generation_config.json`, else of its `config.json`, else None."""
    for name in ("generation_config.json", "config.json"):
        if (file := base / name).is_file():
            value = json.loads(file.read_text(encoding="utf-8")).get(key)
            if value is not None:
                return value
    return None
