"""One real request at the start: shows that a server works, and what it can do.

A server that does not know a field either ignores it or refuses the request and names the field. The probe
sends all that we wish for and drops what is refused by name, until an answer comes. It uses the run's own
sampling settings, since `transformers serve` takes those of the first request for all that follow.
"""

import dataclasses
from typing import Any

import httpx

from specdec.config import Sampling
from specdec.errors import RequestRefused, ServerError
from specdec.synthesis.answer import Answer, BadAnswer, parse_answer
from specdec.synthesis.client import key_refused, read_json, shown
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.request import CHAT, COMPLETIONS, QUESTION, Draw, chat_body, completion_body

PROBE_SECONDS = 300.0  # the first request may compile kernels


def probe(endpoint: Endpoint, wished: dict[str, Any], sampling: Sampling) -> Endpoint:
    """The endpoint with what it can do. Raises RequestRefused (final) or ServerError (may pass).

    Where cut-off answers are to be continued, a server that cannot go on behind token ids is refused here and not
    after a day.
    """
    draw = dataclasses.replace(Draw.of(sampling, "probe", 0), max_tokens=1)
    fields, refused = dict(wished), list[str]()
    with httpx.Client(
        base_url=endpoint.url, headers=endpoint.headers(), timeout=PROBE_SECONDS, trust_env=False
    ) as http:
        while True:
            known = _able(endpoint, fields=fields, refused=tuple(refused))
            response = _post(http, CHAT, chat_body(known, QUESTION, draw))
            named = [name for name in fields if response.status_code in (400, 422) and name in response.text]
            if not named:
                break
            refused += named
            fields = {name: value for name, value in fields.items() if name not in named}
        answer = _checked(endpoint, response)
        gives_ids = answer.token_ids is not None and answer.prompt_token_ids is not None
        continues = sampling.cut_off == "continue" and gives_ids and _continues(http, known, answer, draw)
    if sampling.cut_off == "continue" and not continues:
        raise RequestRefused(
            f"sampling.cut_off is continue, and the server at {endpoint.url} does not take or give token ids at "
            f"{COMPLETIONS}: set it to keep or drop, or use vLLM"
        )
    question_ids = tuple(answer.prompt_token_ids) if answer.prompt_token_ids is not None else None
    return _able(known, token_ids=gives_ids, continues=continues, question_ids=question_ids)


def _able(endpoint: Endpoint, **changes: Any) -> Endpoint:
    return dataclasses.replace(endpoint, capabilities=dataclasses.replace(endpoint.capabilities, **changes))


def _continues(http: httpx.Client, endpoint: Endpoint, answer: Answer, draw: Draw) -> bool:
    assert answer.prompt_token_ids is not None
    assert answer.token_ids is not None
    response = _post(
        http, COMPLETIONS, completion_body(endpoint, answer.prompt_token_ids + answer.token_ids, draw, 1)
    )
    if response.status_code in (400, 404, 405, 422, 501):
        return False
    return _checked(endpoint, response).token_ids is not None


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    try:
        return http.post(path, json=body)
    except httpx.HTTPError as error:
        raise ServerError(f"the server at {http.base_url} does not answer: {type(error).__name__}: {error}") from None


def _checked(endpoint: Endpoint, response: httpx.Response) -> Answer:
    status, where = response.status_code, f"the server at {endpoint.url}"
    if status in (401, 403):
        raise RequestRefused(key_refused(endpoint, status))
    if status in (400, 404, 405, 422, 501):
        raise RequestRefused(f"{where} refused a request for the model {endpoint.model!r}: {shown(response)}")
    if status != 200:
        raise ServerError(f"{where} failed at the first request: {shown(response)}")
    try:
        return parse_answer(read_json(response))
    except BadAnswer as error:
        raise RequestRefused(f"{where}: {error}") from None
