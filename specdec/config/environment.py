"""Settings that change no result: they come from the environment, so they neither re-run a stage nor leak.

The API key is a `SecretStr`: printing or logging it shows asterisks.
"""

import os
from dataclasses import dataclass

from pydantic import SecretStr

from specdec.errors import ConfigError


@dataclass(frozen=True)
class Environment:
    """`SPECDEC_*`, read once a process.

    server_url: an OpenAI-compatible server that already runs (`SPECDEC_SERVER_URL`); None starts one.
    api_key: its key (`SPECDEC_API_KEY`); a server that we start gets a fresh one.
    concurrency: requests in flight (`SPECDEC_CONCURRENCY`).
    port: the port of a server that we start (`SPECDEC_PORT`); None takes a free one.
    """

    server_url: str | None = None
    api_key: SecretStr | None = None
    concurrency: int = 32
    port: int | None = None

    @classmethod
    def read(cls) -> "Environment":
        key = os.environ.get("SPECDEC_API_KEY")
        return cls(
            server_url=_server_url(),
            api_key=SecretStr(key) if key else None,
            concurrency=_positive("SPECDEC_CONCURRENCY", 32) or 32,
            port=_positive("SPECDEC_PORT", None),
        )


def _server_url() -> str | None:
    url = os.environ.get("SPECDEC_SERVER_URL", "").rstrip("/")
    if "@" in url:
        raise ConfigError("SPECDEC_SERVER_URL holds a name or a password: give the key in SPECDEC_API_KEY")
    return url or None


def _positive(name: str, default: int | None) -> int | None:
    text = os.environ.get(name)
    if not text:
        return default
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"{name} is {text!r}: set it to a positive whole number, or unset it")
    return int(text)
