"""From a conversation to a prompt: its id, its split, and the chat template's tokens."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from specdec.data.conversations import Conversation, Message
from specdec.errors import DataError, ModelError, SpecdecError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prompt:
    """id: sha256 of the system and user turns. messages: up to the last user turn that is kept."""

    id: str
    category: str
    messages: list[Message]

    @property
    def characters(self) -> int:
        return sum(len(m["content"]) for m in self.messages)

    def as_row(self) -> dict[str, Any]:
        return {"id": self.id, "category": self.category, "messages": self.messages}


def make_prompt(conversation: Conversation, max_turns: int) -> Prompt:
    """Keeps the first `max_turns` user turns and what stands between them."""
    users = [i for i, m in enumerate(conversation.messages) if m["role"] == "user"]
    messages = conversation.messages[: users[:max_turns][-1] + 1]
    asked = [m for m in messages if m["role"] != "assistant"]
    return Prompt(_sha256(asked), conversation.category, messages)


def split_of(prompt: Prompt, validation_share: float, test_share: float) -> str:
    """The split a prompt belongs to, whatever other rows there are.

    By a hash of the first user turn, so that two conversations that open with the same question sit on one side.
    """
    opening = next(m["content"] for m in prompt.messages if m["role"] == "user")
    place = int(_sha256(opening)[:12], 16) / 16**12
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def user_turns(messages: list[Message]) -> list[str]:
    """What the user says in a conversation."""
    return [m["content"] for m in messages if m["role"] == "user"]


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """The chat template's token ids for a conversation that the assistant is to continue.

    Raises DataError where the template refuses it.
    """
    try:
        return batch_prompt_ids(tokenizer, [messages])[0]
    except SpecdecError:
        raise
    except Exception as error:  # noqa: BLE001 - a chat template is a program: it raises what it likes
        roles = ", ".join(m["role"] for m in messages)
        raise DataError(
            f"the base's chat template refuses a conversation ({roles}) that begins {messages[0]['content'][:60]!r}: "
            f"{' '.join(str(error).split())}: leave it out, or the turns that the template does not take"
        ) from None


def batch_prompt_ids(tokenizer: Any, conversations: list[list[Message]]) -> list[list[int]]:
    """The same for several. Raises whatever the template raises that refuses one of them."""
    if not tokenizer.chat_template:
        raise ModelError("the base's tokenizer has no chat template: choose a chat model, or add chat_template.jinja")
    encoded = tokenizer.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        tokenizer_kwargs={"verbose": False},  # it would warn of prompts that are too long, which are counted
    )
    return [list(ids) for ids in encoded["input_ids"]]


def template_refusal(tokenizer: Any, messages: list[Message]) -> Exception | None:
    """What the chat template raises on a conversation, if it does: some take no system turn."""
    try:
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # noqa: BLE001 - a chat template is a program: it raises what it likes
        return error
    return None


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
