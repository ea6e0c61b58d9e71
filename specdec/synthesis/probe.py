"""One real request at the start: shows that a server works, and what it can do.

A server that does not know a field either ignores it or refuses the request. The probe sends all that we wish
for, finds the fields that are refused by leaving them out, and does without those that change no answer. It uses
the run's own sampling settings, since `transformers serve` takes those of the first request for all that follow.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from specdec.config import Sampling
from specdec.errors import RequestRefused, ServerError
from specdec.synthesis.answer import Answer, BadAnswer, parse_answer
from specdec.synthesis.client import MAY_PASS, key_refused, read_json, shown
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.request import CHAT, COMPLETIONS, QUESTION, Draw, chat_body, completion_body

PROBE_SECONDS = 300.0  # the first request may compile kernels
BAD_REQUEST = (400, 422)


def probe(endpoint: Endpoint, wished: dict[str, Any], sampling: Sampling) -> Endpoint:
    """The endpoint with what it can do. Raises RequestRefused (final) or ServerError (may pass).

    Refused here and not after a day: a server that does not take a setting which the rows would claim, and, where
    cut-off answers are to be continued, one that cannot go on behind token ids.
    """
    draw = dataclasses.replace(Draw.of(sampling, "probe", 0), max_tokens=1)
    with httpx.Client(
        base_url=endpoint.url, headers=endpoint.headers(), timeout=PROBE_SECONDS, trust_env=False
    ) as http:
        fields, response = _taken(wished, lambda some: _post(http, CHAT, _question(endpoint, some, draw)))
        answer = _checked(endpoint, response)
        refused = tuple(name for name in wished if name not in fields)
        _check_settings(endpoint, refused, sampling)
        known = _able(endpoint, fields=fields, refused=refused)
        gives_ids = answer.token_ids is not None and answer.prompt_token_ids is not None
        continues = sampling.cut_off == "continue" and gives_ids and _continues(http, known, answer, draw)
    if sampling.cut_off == "continue" and not continues:
        raise RequestRefused(
            f"cut_off is continue, and the server at {endpoint.url} does not take or give token ids at "
            f"{COMPLETIONS}: set it to keep or drop, or use vLLM"
        )
    question_ids = tuple(answer.prompt_token_ids) if answer.prompt_token_ids is not None else None
    return _able(known, token_ids=gives_ids, question_ids=question_ids)


def _taken(
    wished: Mapping[str, Any], ask: Callable[[dict[str, Any]], httpx.Response]
) -> tuple[dict[str, Any], httpx.Response]:
    """The fields that a server takes, and its answer to a request with just these.

    What it says of its reasons is not read: some servers repeat the whole request there. Fields are left out one
    after the other until the request is not refused; those before the last, which was a reason, are tried again.
    """
    left_out = list[str]()

    def response(without: list[str]) -> httpx.Response:
        return ask({name: value for name, value in wished.items() if name not in without})

    last = response(left_out)
    for name in wished:
        if last.status_code not in BAD_REQUEST:
            break
        left_out.append(name)
        last = response(left_out)
    for name in left_out[:-1] if last.status_code == 200 else []:
        fewer = [other for other in left_out if other != name]
        if (again := response(fewer)).status_code not in BAD_REQUEST:
            left_out, last = fewer, again
    return {name: value for name, value in wished.items() if name not in left_out}, last


def _question(endpoint: Endpoint, fields: dict[str, Any], draw: Draw) -> dict[str, Any]:
    return chat_body(_able(endpoint, fields=fields), QUESTION, draw)


def _check_settings(endpoint: Endpoint, refused: tuple[str, ...], sampling: Sampling) -> None:
    """Raises RequestRefused where a refused field changes the answers: their rows would claim what was not done."""
    lacks = f"the server at {endpoint.url} does not take"
    for name, value in (("top_k", sampling.top_k), ("min_p", sampling.min_p)):
        if name in refused and value:
            raise RequestRefused(
                f"{lacks} {name}, and the settings ask for {value}: set it to 0, or use another server"
            )
    if "generation_config" in refused and sampling.greedy_share < 1:
        raise RequestRefused(
            f"{lacks} generation_config, without which `transformers serve` answers greedily, and the settings ask "
            f"for temperature {sampling.temperatures[0].temperature}: use another server"
        )


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
    if status in MAY_PASS or (status >= 500 and status != 501):
        raise ServerError(f"{where} failed at the first request: {shown(response)}")
    if status != 200:
        place = f"is {endpoint.url}{CHAT} where it takes chat completions?"
        hint = "; another model: SPECDEC_SERVER_MODEL or --model" if status in BAD_REQUEST else f"; {place}"
        raise RequestRefused(f"{where} refused a request for the model {endpoint.model!r}: {shown(response)}{hint}")
    try:
        return parse_answer(read_json(response))
    except BadAnswer as error:
        raise RequestRefused(f"{where}: {error}") from None
