"""Conversations as chat messages, and how a chat is written in tokens."""

import hashlib
import json
from pathlib import Path
from typing import Any

from specdec import io
from specdec.errors import DataError

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))  # their ids are 0, 1, 2, ...
PAD_ID, BOS_ID, EOS_ID = range(3)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + m['role']) }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Message = dict[str, str]
Chat = list[Message]


def read_chats(conversations: Path) -> list[Chat]:
    """The chats of a JSONL file. Raises DataError where it is unreadable or follows another schema."""
    try:
        rows = list(io.read_jsonl(conversations))
    except (OSError, ValueError) as error:
        raise DataError(f"{conversations} is no readable JSONL: {error}") from error
    return [_chat(row) for row in rows]


def _chat(row: dict[str, Any]) -> Chat:
    """The messages of a row in the Daring-Anteater schema."""
    try:
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        chat = system + [{"role": t["from"].lower(), "content": t["value"]} for t in row["conversations"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"a conversation does not follow the schema: {error}") from error
    if wrong := [m for m in chat if m["role"] not in ROLES or not isinstance(m["content"], str)]:
        raise DataError(f"a turn must be a text of User or Assistant, found {wrong[0]!r:.80}")
    return chat


def split(chats: list[Chat], held_out: float) -> tuple[list[Chat], list[Chat]]:
    """Chats to train on and chats held out, by a hash of their content."""
    train: list[Chat] = []
    rest: list[Chat] = []
    for chat in chats:
        digest = hashlib.sha256(json.dumps(chat).encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        (rest if share < held_out else train).append(chat)
    if not train:
        raise DataError("no conversation is left to train on")
    return train, rest or train[:1]
