"""What a running server is: its engine, the models that it knows, and their limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from specdec.errors import ConfigError, RequestRefused, ServerError
from specdec.synthesis.client import key_refused
from specdec.synthesis.endpoint import Endpoint

SECONDS = 10.0
NAMES = {"vllm": "vLLM", "transformers": "transformers serve", "external": "a server"}


@dataclass(frozen=True)
class Identity:
    """What a server says of itself.

    engine: `vllm`, `transformers` or `external` (another one, or one that does not tell).
    models: the names that it knows, each with the most tokens of prompt and answer together, where it tells.
    """

    engine: str
    version: str = ""
    models: Mapping[str, int | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{NAMES[self.engine]} {self.version}".strip()


def identify(endpoint: Endpoint) -> Identity:
    """Raises ServerError (nothing listens, not well), RequestRefused (wrong key, not a model server) or ConfigError
    (no URL)."""
    with _client(endpoint) as http:
        _check_health(http, endpoint.url)
        if _is_transformers(http, endpoint.url):
            return Identity("transformers")  # its list of models is that of the machine's hub cache
        response = _get(http, "/v1/models", endpoint.url)
        _check_answer(response, endpoint)
        entries = _entries(response)
        models = {str(entry["id"]): _whole_number(entry.get("max_model_len")) for entry in entries}
        if not any(entry.get("owned_by") == "vllm" for entry in entries):
            return Identity("external", models=models)
        return Identity("vllm", _text(_get(http, "/version", endpoint.url), "version"), models)


def _client(endpoint: Endpoint) -> httpx.Client:
    try:
        return httpx.Client(base_url=endpoint.url, headers=endpoint.headers(), timeout=SECONDS, trust_env=False)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{endpoint.url} is not a URL: {error}") from None


def _get(http: httpx.Client, path: str, url: str) -> httpx.Response:
    try:
        return http.get(path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(f"no server answers at {url}: {str(error) or type(error).__name__}") from None


def _check_health(http: httpx.Client, url: str) -> None:
    """404 is fine: not every server has the path. 5xx is a dead engine, or one that still loads."""
    status = _get(http, "/health", url).status_code
    if status >= 500:
        raise ServerError(f"the server at {url} says that it is not well (HTTP {status} on /health)")


def _is_transformers(http: httpx.Client, url: str) -> bool:
    """`transformers serve` does not name itself; its routes do."""
    paths = _object(_get(http, "/openapi.json", url)).get("paths")
    return isinstance(paths, dict) and {"/load_model", "/reset"} <= paths.keys()


def _check_answer(response: httpx.Response, endpoint: Endpoint) -> None:
    """What no second try mends. A list that is missing, or an error of the list alone, is not among it."""
    where, status = f"the server at {endpoint.url}", response.status_code
    if status in (401, 403):
        raise RequestRefused(key_refused(endpoint, status))
    if response.has_redirect_location:
        raise ConfigError(f"{where} redirects to another place (HTTP {status}): give the URL of that place")
    if status == 200 and "html" in response.headers.get("content-type", ""):
        raise RequestRefused(f"{where} gives a web page instead of JSON: is this the URL of a model server?")


def _entries(response: httpx.Response) -> list[dict[str, Any]]:
    """The models of `/v1/models`; none where a server cannot list them."""
    data = _object(response).get("data")
    return [e for e in data if isinstance(e, dict) and "id" in e] if isinstance(data, list) else []


def _text(response: httpx.Response, key: str) -> str:
    value = _object(response).get(key)
    return value if isinstance(value, str) else ""


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json() if response.status_code == 200 else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int else None
