"""What a server answered, checked and in our own words."""

from dataclasses import dataclass
from typing import Any


class BadAnswer(Exception):
    """An answer that is not the JSON of a completion: cut short, HTML, something else."""


class RowFailed(Exception):
    """One row that cannot be answered; the others can. `kind` is a short name to count by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RowDropped(Exception):
    """One row that the settings leave out for what the base said. `kind` is a short name to count by."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """One turn of the base. The token ids and counts are None where the server does not give them.

    seconds: from sending the request to the whole answer. pieces: requests that it took, above 1 where a cut-off
    answer was continued.
    """

    text: str
    finish_reason: str
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    seconds: float = 0.0
    pieces: int = 1

    def followed_by(self, rest: "Answer", text: str) -> "Answer":
        """This answer and its continuation as one; `text` is that of both."""
        assert self.token_ids is not None
        assert rest.token_ids is not None
        return Answer(
            text=text,
            finish_reason=rest.finish_reason,
            token_ids=self.token_ids + rest.token_ids,
            prompt_token_ids=self.prompt_token_ids,
            completion_tokens=len(self.token_ids) + len(rest.token_ids),
            seconds=self.seconds + rest.seconds,
            pieces=self.pieces + rest.pieces,
        )


def parse_answer(content: Any, seconds: float = 0.0) -> Answer:
    """An `Answer` of the JSON of a chat completion or of a completion. Raises BadAnswer.

    vLLM puts the prompt's ids at the top of a chat completion, and into the choice of a completion.
    """
    try:
        choice, usage = content["choices"][0], content.get("usage") or {}
        text = choice["message"].get("content") if "message" in choice else choice["text"]
        prompt = content.get("prompt_token_ids")
        prompt = choice.get("prompt_token_ids") if prompt is None else prompt
        token_ids = _ids(choice.get("token_ids"))
        if text and token_ids == []:
            raise TypeError("a text without a token id")
        return Answer(
            text=_text(text or ""),
            finish_reason=_text(choice["finish_reason"]),
            token_ids=token_ids,
            prompt_token_ids=_ids(prompt),
            completion_tokens=_count(usage.get("completion_tokens")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            seconds=seconds,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadAnswer(f"not a completion ({type(error).__name__}: {error})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, and {type(value).__name__} came")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TypeError("half a surrogate pair is no text") from None
    return value


def _count(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError("a count is not a whole number")
    return value


def _ids(value: Any) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise TypeError("token ids are not a list of whole numbers")
    return value
