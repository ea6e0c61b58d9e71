"""What a server answered, checked and in our own words."""

from dataclasses import dataclass
from typing import Any


class BadAnswer(Exception):
    """An answer that is not the JSON of a chat completion: cut short, HTML, something else."""


class RowFailed(Exception):
    """One row that cannot be answered; the others can. `kind` is a short name to count by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """One turn of the base. The token ids and counts are None where the server does not give them."""

    text: str
    finish_reason: str
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0


def parse_answer(content: Any, seconds: float = 0.0) -> Answer:
    """An `Answer` of a chat completion's JSON. Raises BadAnswer."""
    try:
        choice = content["choices"][0]
        usage = content.get("usage") or {}
        return Answer(
            text=_text(choice["message"].get("content") or ""),
            finish_reason=_text(choice["finish_reason"]),
            token_ids=_ids(choice.get("token_ids")),
            prompt_token_ids=_ids(content.get("prompt_token_ids")),
            completion_tokens=usage.get("completion_tokens"),
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadAnswer(f"not a chat completion ({type(error).__name__}: {error})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, and {type(value).__name__} came")
    return value


def _ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise TypeError("token ids are not a list of whole numbers")
    return value
