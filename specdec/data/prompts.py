"""From conversations to prompts: de-duplicated, filtered by length, split by a hash."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from specdec.data.conversations import Conversation, Message
from specdec.errors import ModelError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prompt:
    """id: sha256 of the system and user turns. messages: up to the last user turn that is kept."""

    id: str
    category: str
    messages: list[Message]

    def as_row(self) -> dict[str, Any]:
        return {"id": self.id, "category": self.category, "messages": self.messages}


@dataclass
class PromptCount:
    """What became of every conversation: a kept prompt, or a reason in `dropped`. lengths: tokens of the kept."""

    dropped: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)


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


def select(prompts: Iterable[Prompt], limit: int | None, count: PromptCount) -> list[Prompt]:
    """Ordered by id (a hash, so a fair sample), cut at `limit`."""
    ordered = sorted(prompts, key=lambda p: p.id)
    kept = ordered if limit is None else ordered[:limit]
    count.dropped["over the limit of the split"] += len(ordered) - len(kept)
    return kept


def unique_short_prompts(
    conversations: Iterable[Conversation],
    length: Callable[[list[Message]], int],
    max_turns: int,
    max_prompt_tokens: int,
    count: PromptCount,
) -> Iterable[Prompt]:
    """The prompts that are new, short enough and accepted by the chat template; the others are counted.

    length: the tokens of a prompt, or jinja2's TemplateError when the template refuses it (some take no system turn).
    """
    seen: set[str] = set()
    for conversation in conversations:
        prompt = make_prompt(conversation, max_turns)
        if prompt.id in seen:
            count.dropped["duplicate"] += 1
            continue
        seen.add(prompt.id)
        try:
            tokens = length(prompt.messages)
        except TemplateError:
            count.dropped["refused by the chat template"] += 1
            continue
        if tokens > max_prompt_tokens:
            count.dropped["longer than max_prompt_tokens"] += 1
            continue
        count.lengths.append(tokens)
        yield prompt


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """The chat template's token ids for a conversation that the assistant is to continue."""
    if not tokenizer.chat_template:
        raise ModelError("the base's tokenizer has no chat template: choose a chat model, or add chat_template.jinja")
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
