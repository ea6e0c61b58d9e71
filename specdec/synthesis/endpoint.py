"""A server that answers requests: where it is, its key, and what it has shown that it can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True)
class Capabilities:
    """What `specdec.synthesis.probe` has learnt of a server.

    fields: the request fields beyond the standard ones that it takes, with the values to send.
    refused: the names of those that it refused; we do without them, and say so in the metrics.
    token_ids: it gives the token ids of prompt and answer.
    question_ids: the ids to which it rendered the probe's question; None where it does not say.
    seeds: a seed a request may be sent. Never found by trying: one build of vLLM dies of it.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    token_ids: bool = False
    question_ids: tuple[int, ...] | None = None
    seeds: bool = False


@dataclass(frozen=True)
class Endpoint:
    """One OpenAI-compatible server. `url` has no `/v1` at its end; `model` is the name to use in requests.

    engine: `vllm`, `transformers` or `external` (unknown). most_in_flight: requests that it can take at once;
    None where it queues without bound. max_model_len: its limit of prompt and answer together, where it tells.
    """

    url: str
    model: str
    engine: str
    api_key: SecretStr | None = None
    capabilities: Capabilities = Capabilities()
    most_in_flight: int | None = None
    max_model_len: int | None = None

    def headers(self) -> dict[str, str]:
        """The headers of every request: the only place where the key is read."""
        return {"Authorization": f"Bearer {self.api_key.get_secret_value()}"} if self.api_key else {}


@dataclass(frozen=True)
class Server:
    """A server as a run is given it: `connect` finds out again what it is and can do, with one real request.

    endpoint: what the first `connect` found; None where it did not answer then, and is to be tried again later.
    `connect` blocks. It raises ServerError (may pass) or RequestRefused, ConfigError (will not).
    """

    url: str
    connect: Callable[[], Endpoint]
    endpoint: Endpoint | None
