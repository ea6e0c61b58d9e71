"""The body of a request: every sampling setting stated, nothing left to a server's default."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.config import Sampling
from specdec.synthesis.endpoint import Endpoint

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

Message = Mapping[str, str]

QUESTION: tuple[Message, ...] = ({"role": "user", "content": "Hello"},)  # what every server is asked first


@dataclass(frozen=True)
class Draw:
    """How one answer is sampled: the run's settings with the temperature that this row has drawn."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int

    @classmethod
    def of(cls, sampling: Sampling, row_id: str, sample: int) -> "Draw":
        """The draw of one sample of one prompt. It depends on nothing but the row and the settings.

        The samples of a prompt stand at equal distances on the mix, from a place that the row's hash gives: over
        many rows each temperature has its share, and within a prompt they are spread as evenly as can be.
        """
        place = (_hash(f"{row_id}/mix") / 2**32 + sample / sampling.samples) % 1.0
        return cls(_at(sampling, place), sampling.top_p, sampling.top_k, sampling.min_p, sampling.max_tokens)

    def row(self) -> dict[str, Any]:
        """As the synthetic row records it."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "max_tokens": self.max_tokens,
        }


def _at(sampling: Sampling, place: float) -> float:
    for part in sampling.temperatures:
        place -= part.share
        if place < 0:
            return part.temperature
    return sampling.temperatures[-1].temperature  # shares add up to 1 only as well as floats do


def chat_body(endpoint: Endpoint, messages: Sequence[Message], draw: Draw, seed: int | None = None) -> dict[str, Any]:
    """The JSON of one chat completion."""
    return {"messages": list(messages), **_body(endpoint, draw, seed)}


def completion_body(
    endpoint: Endpoint, token_ids: Sequence[int], draw: Draw, max_tokens: int, seed: int | None = None
) -> dict[str, Any]:
    """The JSON of a completion that goes on behind `token_ids`."""
    return {"prompt": list(token_ids), **_body(endpoint, draw, seed), "max_tokens": max_tokens}


def _body(endpoint: Endpoint, draw: Draw, seed: int | None) -> dict[str, Any]:
    body = {
        "model": endpoint.model,
        "temperature": draw.temperature,
        "top_p": draw.top_p,
        "max_tokens": draw.max_tokens,
        **endpoint.capabilities.fields,
    }
    return body if seed is None else {**body, "seed": seed}


def wished_fields(engine: str, base: Path | None, sampling: Sampling) -> dict[str, Any]:
    """What we would like to send beyond the standard fields; the probe finds out which of it a server
    takes. base: the base's folder, for the special tokens that `transformers serve` must be told."""
    if engine == "transformers":
        return {"return_token_ids": True, "generation_config": generation_config(base, sampling)}
    return {
        "return_token_ids": True,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }


def generation_config(base: Path | None, sampling: Sampling) -> str:
    """The whole generation config that `transformers serve` shall use, as the JSON text that it expects.

    Without it a temperature above 0 alone leaves `do_sample` off, so the answers would be greedy, and the
    base's own `generation_config.json` (a repetition penalty, a top_k) would silently shape them. That server
    samples all requests at one temperature, so the settings hold one.
    """
    temperature = sampling.temperatures[0].temperature
    config = {
        "do_sample": temperature > 0,
        "temperature": temperature or 1.0,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or None,
        "repetition_penalty": 1.0,
        "max_new_tokens": sampling.max_tokens,
        **{key: value for key in SPECIAL_IDS if (value := _base_setting(base, key)) is not None},
    }
    return json.dumps(config)


SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def row_seed(row_id: str, sample: int, turn: int, piece: int = 0) -> int:
    """A seed in [0, 2^31) that depends on nothing but the row, its sample, the turn and the piece of the turn."""
    return _hash(f"{row_id}/{sample}/{turn}/{piece}") >> 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _base_setting(base: Path | None, key: str) -> Any:
    """A value of the base's `generation_config.json`, else of its `config.json`, else None."""
    for name in ("generation_config.json", "config.json"):
        if base and (file := base / name).is_file():
            value = json.loads(file.read_text(encoding="utf-8")).get(key)
            if value is not None:
                return value
    return None
