"""One request, tried until it is answered or cannot be: what may pass is tried again, what is final is
not."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from specdec.config import Sampling
from specdec.errors import RequestRefused, ServerError
from specdec.synthesis.answer import Answer, BadAnswer, RowFailed, parse_answer
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.request import CHAT, Message, chat_body

MAY_PASS = frozenset({408, 409, 425, 429})
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Patience:
    """How long and how often we try. All times in seconds.

    attempts: tries of one request, the first included. first_wait, longest_wait: of the back-off between
    them.
    connect, read, total: limits of one try; `read` is the silence that we bear, which for an answer that does
    not stream is the whole time in the server's queue and in generation.
    """

    attempts: int = 7
    first_wait: float = 0.5
    longest_wait: float = 20.0
    connect: float = 10.0
    read: float = 900.0
    total: float = 1200.0

    def wait(self, attempt: int, asked: float | None = None) -> float:
        """Seconds before try number `attempt` + 1: half fixed, half random, or what the server asked for."""
        backoff = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 1))
        jittered = backoff * (0.5 + random.random() / 2)
        return jittered if asked is None else min(max(jittered, asked), self.longest_wait)


class _TryAgain(Exception):
    """A failure that may pass. `asked` is the server's Retry-After in seconds, if it gave one."""

    def __init__(self, kind: str, message: str, asked: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.asked = kind, asked


class Client:
    """An async client of one endpoint, to be used in `async with`. `retries` counts the tries beyond the
    first."""

    def __init__(self, endpoint: Endpoint, connections: int, patience: Patience | None = None) -> None:
        self.endpoint, self.retries = endpoint, 0
        self.patience = patience or Patience()
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers=endpoint.headers(),
            timeout=httpx.Timeout(self.patience.read, connect=self.patience.connect, pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy of the environment must never see loopback traffic or the key
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None) -> Answer:
        """The base's next turn. Raises RowFailed (this row only), RequestRefused or ServerError
        (everyone)."""
        body = chat_body(self.endpoint, messages, sampling, seed)
        attempt = 1
        while True:
            try:
                return await self._try_once(body)
            except _TryAgain as failure:
                if attempt >= self.patience.attempts:
                    await self._give_up(failure)
                self.retries += 1
                await asyncio.sleep(self.patience.wait(attempt, failure.asked))
                attempt += 1

    async def _try_once(self, body: dict[str, Any]) -> Answer:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.patience.total):
                response = await self._http.post(CHAT, json=body)
            return self._read(response, time.monotonic() - began)
        except UnicodeEncodeError:
            raise RowFailed("bad_prompt", "the prompt holds half a surrogate pair, which is not text") from None
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _TryAgain("timeout", f"no answer in time ({type(error).__name__})") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _TryAgain("network", f"{type(error).__name__}: {error}") from None
        except BadAnswer as error:
            raise _TryAgain("bad_answer", str(error)) from None

    def _read(self, response: httpx.Response, seconds: float) -> Answer:
        status = response.status_code
        if status == 200:
            return parse_answer(read_json(response), seconds)
        if status in (401, 403):
            raise RequestRefused(key_refused(self.endpoint, status))
        if status in MAY_PASS or status >= 500:
            raise _TryAgain(f"http_{status}", shown(response), _retry_after(response))
        raise RowFailed(f"http_{status}", shown(response))

    async def _give_up(self, failure: _TryAgain) -> None:
        """Tells one unlucky row from a server that is gone: the first is recorded, the second ends the
        run."""
        if not await self._healthy():
            raise ServerError(
                f"the server at {self.endpoint.url} stopped answering ({failure}); what was answered is "
                "kept: run the same command again"
            )
        raise RowFailed(failure.kind, str(failure))

    async def _healthy(self) -> bool:
        try:
            response = await self._http.get("/health", timeout=max(self.patience.connect, 1.0))
        except httpx.HTTPError:
            return False
        return response.status_code < 500


def read_json(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises BadAnswer, and says so when a web page came instead."""
    if "html" in response.headers.get("content-type", ""):
        raise BadAnswer("a web page came instead of JSON: is this the URL of an OpenAI-compatible server?")
    try:
        return response.json()
    except ValueError:
        raise BadAnswer("the answer is not JSON") from None


def key_refused(endpoint: Endpoint, status: int) -> str:
    """One line for 401 and 403, without the key."""
    how = "the key in SPECDEC_API_KEY is wrong" if endpoint.api_key else "set SPECDEC_API_KEY to its key"
    return f"the server at {endpoint.url} refused the request (HTTP {status}): {how}"


def shown(response: httpx.Response) -> str:
    """The status and the beginning of the text of an error, on one line."""
    return f"HTTP {response.status_code}: {' '.join(response.text[:SHOWN_CHARACTERS].split())}"


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or a date, which no model server sends
        return None
