"""One request to one server: an answer, a failure that may pass, or one that is final."""

import asyncio
import random
import ssl
import time
from dataclasses import dataclass
from typing import Any

import httpx

from specdec.errors import RequestRefused
from specdec.synthesis.answer import Answer, BadAnswer, RowFailed, parse_answer
from specdec.synthesis.endpoint import Endpoint

MAY_PASS = frozenset({408, 409, 425, 429})
NOT_HERE = frozenset({301, 302, 307, 308, 404, 405})  # no longer the server that it was when it was connected
WHOLE, BROKEN_OFF = frozenset({"stop", "length"}), frozenset({"abort", "error"})  # finish reasons
SHOWN_CHARACTERS = 300
FULL_CONTEXT = ("context length", "maximum model length", "max_tokens must be at least 1, got 0")  # of vLLM


@dataclass(frozen=True)
class Patience:
    """How long and how often we try. All times in seconds.

    attempts: tries of one request, the first included. first_wait, longest_wait: of the back-off between them.
    connect, read, total: limits of one try; `read` is the silence that we bear, which for an answer that does
    not stream is the whole time in the server's queue and in generation.
    watch: between two looks at a server's health. outage: without any server, until the run gives up.
    """

    attempts: int = 7
    first_wait: float = 0.5
    longest_wait: float = 20.0
    connect: float = 10.0
    read: float = 900.0
    total: float = 1200.0
    watch: float = 15.0
    outage: float = 300.0

    def wait(self, attempt: int, asked: float | None = None) -> float:
        """Seconds before try number `attempt` + 1: half fixed, half random, or what the server asked for."""
        backoff = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 30))
        jittered = backoff * (0.5 + random.random() / 2)
        return jittered if asked is None else min(max(jittered, asked), self.longest_wait)


class MayPass(Exception):
    """A failure that may pass. `asked` is the server's Retry-After in seconds, if it gave one."""

    def __init__(self, kind: str, message: str, asked: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.asked = kind, asked

    @property
    def wants_less(self) -> bool:
        """The server answers, and has no room for this request now."""
        return self.kind == "http_429"

    @property
    def not_here(self) -> bool:
        """The place answers, and is no longer the server that was connected: a model or path that is gone."""
        return self.kind in {f"http_{status}" for status in NOT_HERE}

    @property
    def overload(self) -> bool:
        """The server has more to do than it can: fewer requests in flight may help."""
        return self.wants_less or self.kind in ("http_503", "timeout")


class Client:
    """An async client of one endpoint.

    Each request in flight has an `httpx.AsyncClient` of one connection: a pool of many is walked over for every
    request (measured at 1,000 in flight: 130 requests/s).
    """

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self.endpoint, self.patience = endpoint, patience
        self._tls = ssl.create_default_context() if endpoint.url.startswith("https") else False
        self._all: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []  # the last one used is taken first: the others may close

    def _connection(self) -> httpx.AsyncClient:
        connection = httpx.AsyncClient(
            base_url=self.endpoint.url,
            headers=self.endpoint.headers(),
            timeout=httpx.Timeout(self.patience.read, connect=self.patience.connect, pool=None),
            limits=httpx.Limits(max_connections=1),
            trust_env=False,  # a proxy of the environment must never see loopback traffic or the key
            verify=self._tls,
        )
        self._all.append(connection)
        return connection

    async def close(self) -> None:
        """Closes all connections."""
        for connection in self._all:
            await connection.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> Answer:
        """One try. Raises MayPass, RowFailed (this row only) or RequestRefused (everyone)."""
        connection = self._idle.pop() if self._idle else self._connection()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.patience.total):
                response = await connection.post(path, json=body)
            return self._read(response, time.monotonic() - began)
        except UnicodeEncodeError:
            raise RowFailed("bad_prompt", "the prompt holds half a surrogate pair, which is not text") from None
        except (TimeoutError, httpx.TimeoutException) as error:
            raise MayPass("timeout", f"no answer in time ({type(error).__name__})") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise MayPass("network", f"{type(error).__name__}: {error}") from None
        except BadAnswer as error:
            raise MayPass("bad_answer", str(error)) from None
        finally:
            self._idle.append(connection)

    def _read(self, response: httpx.Response, seconds: float) -> Answer:
        status = response.status_code
        if status == 200:
            return _whole(parse_answer(read_json(response), seconds))
        if status in (401, 403):
            raise RequestRefused(key_refused(self.endpoint, status))
        if status in MAY_PASS or status in NOT_HERE or status >= 500:
            raise MayPass(f"http_{status}", shown(response), _retry_after(response))
        raise RowFailed(_final_kind(response), shown(response))

    async def healthy(self) -> bool:
        """Whether `/health` answers at all, and not with 5xx (404 is fine: not every server has it)."""
        connection = self._idle.pop() if self._idle else self._connection()
        try:
            response = await connection.get("/health", timeout=max(self.patience.connect, 1.0))
        except httpx.HTTPError:
            return False
        finally:
            self._idle.append(connection)
        return response.status_code < 500


def _whole(answer: Answer) -> Answer:
    """An answer that the base ended, or the token limit. Raises MayPass or RowFailed for one that neither did."""
    if answer.finish_reason in WHOLE:
        return answer
    message = f"the server ended the answer with finish_reason {answer.finish_reason!r}"
    if answer.finish_reason in BROKEN_OFF:
        raise MayPass("broken_off", message)
    raise RowFailed("finish_reason", f"{message}: only stop and length are whole answers")


def _final_kind(response: httpx.Response) -> str:
    """A prompt above the server's context is told from other bad requests by its words; there is no code for it."""
    told = any(words in response.text.lower() for words in FULL_CONTEXT)
    return "too_long" if told else f"http_{response.status_code}"


def read_json(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises BadAnswer, and says so when a web page came instead."""
    if "html" in response.headers.get("content-type", ""):
        raise BadAnswer("a web page came instead of JSON: is this the URL of an OpenAI-compatible server?")
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise BadAnswer("the answer is not JSON") from None


def key_refused(endpoint: Endpoint, status: int) -> str:
    """One line for 401 and 403, without the key."""
    how = "the key in SPECDEC_API_KEY is wrong" if endpoint.api_key else "set SPECDEC_API_KEY to its key"
    return f"the server at {endpoint.url} refused the request (HTTP {status}): {how}"


def shown(response: httpx.Response) -> str:
    """The status and the beginning of the text of an error, on one line. Some servers repeat the key: we do not."""
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    text = response.text.replace(key, "***") if key else response.text
    return f"HTTP {response.status_code}: {' '.join(text[:SHOWN_CHARACTERS].split())}"


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or a date, which no model server sends
        return None
