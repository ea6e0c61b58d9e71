"""A server that runs already: is it there, and under which name does it know the base?"""

from collections.abc import Sequence
from pathlib import Path

import httpx

from specdec.errors import ConfigError, RequestRefused, ServerError
from specdec.synthesis.client import key_refused
from specdec.synthesis.endpoint import Endpoint

SECONDS = 10.0


def served_model(endpoint: Endpoint, base: Path) -> str:
    """The model's name in requests. Raises ServerError, RequestRefused or ConfigError.

    A server of a single model is taken at its word; of several, one must be named like the base's folder. A
    server that cannot list its models (`transformers serve` offline) knows the base by its path.
    """
    with httpx.Client(base_url=endpoint.url, headers=endpoint.headers(), timeout=SECONDS, trust_env=False) as http:
        _check_health(http, endpoint.url)
        response = _get(http, "/v1/models", endpoint.url)
    if response.status_code in (401, 403):
        raise RequestRefused(key_refused(endpoint, response.status_code))
    names = _names(response)
    return _choose(names, base, endpoint.url) if names else str(base)


def _check_health(http: httpx.Client, url: str) -> None:
    """404 is fine: not every server has the path. 5xx is a dead engine."""
    status = _get(http, "/health", url).status_code
    if status >= 500:
        raise ServerError(f"the server at {url} says that it is not well (HTTP {status} on /health)")


def _get(http: httpx.Client, path: str, url: str) -> httpx.Response:
    try:
        return http.get(path)
    except httpx.UnsupportedProtocol:
        raise ConfigError(f"SPECDEC_SERVER_URL is {url!r}: it must begin with http:// or https://") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(f"no server answers at {url} (SPECDEC_SERVER_URL): {error}") from None


def _names(response: httpx.Response) -> list[str]:
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _choose(names: Sequence[str], base: Path, url: str) -> str:
    if len(names) == 1:
        return names[0]
    wanted = (str(base), str(base.resolve()), base.name)
    if match := next((name for name in names if name in wanted), None):
        return match
    raise ConfigError(f"the server at {url} does not serve {base}; it serves: {', '.join(names)}")
