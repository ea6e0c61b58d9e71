"""Settings that change no result: they come from the environment, so they neither re-run a stage nor leak.

The API key is a `SecretStr`: printing or logging it shows asterisks.
"""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from specdec.errors import ConfigError

SERVE_KEY = "SPECDEC_SERVE_KEY"


@dataclass(frozen=True)
class Environment:
    """`SPECDEC_*`, read once a process.

    server_urls: OpenAI-compatible servers that already run (`SPECDEC_SERVER_URLS`, comma-separated); none starts one.
    server_model: the base's name there (`SPECDEC_SERVER_MODEL`); None asks the server.
    server_seeds: a running server may be sent a seed a request (`SPECDEC_SERVER_SEEDS=1`).
    api_key: their key (`SPECDEC_API_KEY`); a server that we start gets a fresh one.
    concurrency: requests in flight to one server (`SPECDEC_CONCURRENCY`); None finds the best number.
    port: the port of a server that we start (`SPECDEC_PORT`); None takes a free one.
    processes: of one training on this machine (`SPECDEC_PROCESSES`); None is one, or what started us says.
    """

    server_urls: tuple[str, ...] = ()
    server_model: str | None = None
    server_seeds: bool = False
    api_key: SecretStr | None = None
    concurrency: int | None = None
    port: int | None = None
    processes: int | None = None

    @classmethod
    def read(cls) -> "Environment":
        """Raises ConfigError."""
        return cls(
            server_urls=_urls("SPECDEC_SERVER_URLS"),
            server_model=os.environ.get("SPECDEC_SERVER_MODEL") or None,
            server_seeds=_yes("SPECDEC_SERVER_SEEDS"),
            api_key=_key("SPECDEC_API_KEY"),
            concurrency=_positive("SPECDEC_CONCURRENCY"),
            port=_positive("SPECDEC_PORT"),
            processes=_positive("SPECDEC_PROCESSES"),
        )


def serve_key() -> SecretStr | None:
    """What `specdec serve` asks of its clients: `SPECDEC_SERVE_KEY`, else vLLM's own `VLLM_API_KEY`; None: nothing.

    Raises ConfigError.
    """
    return _key(SERVE_KEY) or _key("VLLM_API_KEY")


def parse_urls(text: str, where: str) -> tuple[str, ...]:
    """The servers' roots in a comma-separated list, at least one, each once, without `/` or `/v1` at the end.

    `where` names the list in errors, which repeat nothing that may be a secret. Raises ConfigError.
    """
    if "@" in text:
        raise ConfigError(f"{where} holds a name or a password: give the key in SPECDEC_API_KEY")
    if "?" in text or "#" in text:
        raise ConfigError(
            f"{where} holds a `?` or a `#`: give the server's root alone, and its key in SPECDEC_API_KEY"
        )
    urls = [url.strip().rstrip("/").removesuffix("/v1") for url in text.split(",") if url.strip()]
    if not urls:
        raise ConfigError(f"{where} names no server: give a URL such as http://localhost:8000/v1")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{where} holds {url!r}: a server's URL begins with http:// or https://")
        if url.endswith("/completions"):
            raise ConfigError(f"{where} holds {url!r}, which is where one kind of request goes: end it with /v1")
        if wrong := _wrong(url):
            raise ConfigError(f"{where} holds {url!r}, which is not a URL: {wrong}")
    return tuple(dict.fromkeys(urls))


def _wrong(url: str) -> str | None:
    """Why no request could be sent there; the HTTP library would find out with a traceback."""
    if not all("!" <= character <= "~" for character in url):
        return "it holds a blank or a letter that a URL cannot have"
    try:
        parts = urlsplit(url)
        _port, name = parts.port, (parts.hostname or "").encode("idna")
    except ValueError as error:  # of the port, the brackets or the name
        return str(error)
    return None if name else "the server's name is missing"


def _urls(name: str) -> tuple[str, ...]:
    text = os.environ.get(name, "").strip()
    return parse_urls(text, name) if text else ()


def _key(name: str) -> SecretStr | None:
    """A key that a header can hold: of any other one the error of the HTTP library would show it all."""
    key = os.environ.get(name, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"{name} holds a space, a line break or a letter that no key can have: copy it again")
    return SecretStr(key) if key else None


def _yes(name: str) -> bool:
    text = os.environ.get(name, "")
    if text not in ("", "0", "1"):
        raise ConfigError(f"{name} is {text!r}: set it to 1, or unset it")
    return text == "1"


def _positive(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"{name} is {text!r}: set it to a positive whole number, or unset it")
    return int(text)
