"""Conversations whose answers are already there, as rows of token ids: for training without a server.

What the base itself said in a run of `synthesize` has its ids and is better; here the answer is what the chat
template makes of the text, up to and with the token that ends it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import TemplateError

from specdec.data.conversations import Conversation
from specdec.data.prompts import prompt_ids
from specdec.errors import DataError


def render(
    tokenizer: Any, conversations: Iterable[Conversation], stop_ids: frozenset[int]
) -> Iterator[dict[str, Any]]:
    """Rows with `segments`, one an assistant turn, for conversations that have such a turn."""
    for conversation in conversations:
        segments = [
            segment
            for i, message in enumerate(conversation.messages)
            if message["role"] == "assistant"
            and (segment := _segment(tokenizer, conversation.messages[: i + 1], stop_ids))
        ]
        if segments:
            yield {"messages": conversation.messages, "segments": segments}


def _segment(tokenizer: Any, messages: list[dict[str, str]], stop_ids: frozenset[int]) -> dict[str, Any] | None:
    """The last turn of `messages`; None where the template does not write it behind the prompt that asks for it, or
    refuses the conversation (some take no system turn)."""
    try:
        prompt = prompt_ids(tokenizer, messages[:-1])
        whole = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}
        )["input_ids"]
    except (DataError, TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        return None
    if list(whole[: len(prompt)]) != prompt:
        return None
    answer = list(whole[len(prompt) :])
    end = next((i + 1 for i, token in enumerate(answer) if token in stop_ids), len(answer))
    return {"prompt_token_ids": prompt, "token_ids": answer[:end], "finish_reason": "stop"}
