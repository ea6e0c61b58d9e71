"""Regenerates one conversation: every assistant turn anew, each on its own regenerated history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.config import Sampling
from specdec.synthesis.answer import Answer, RowFailed
from specdec.synthesis.client import Client
from specdec.synthesis.request import Message, row_seed
from specdec.synthesis.tokens import Tokens

ROLES = ("system", "user", "assistant")
SERVER, TOKENIZER = "server", "tokenizer"


@dataclass(frozen=True)
class Recipe:
    """What all rows of a run have in common. `base`: the identity of the base's files."""

    sampling: Sampling
    max_model_len: int
    base: Mapping[str, str]
    tokens: Tokens


@dataclass
class Regenerated:
    """One conversation on its way: the history so far, one segment an answer, all answers for figures.

    prompts_differ: prompts that the server rendered to other ids than the base's own template does.
    counts_differ: answers whose re-made ids are not as many as the server counted.
    """

    history: list[Message] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    token_ids_from: str = SERVER
    prompts_differ: int = 0
    counts_differ: int = 0

    def row(self, prompt: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
        """The row of `data/synthetic/`."""
        return {
            "id": prompt["id"],
            "category": prompt["category"],
            "messages": self.history,
            "segments": self.segments,
            "sampling": recipe.sampling.model_dump(),
            "base": dict(recipe.base),
            "token_ids_from": self.token_ids_from,
        }


async def regenerate(prompt: Mapping[str, Any], client: Client, recipe: Recipe) -> Regenerated:
    """The conversation of `prompt`, answered by the base. Raises RowFailed.

    The conversation ends early after an answer that was cut off, and before a turn that does not fit the
    context: what follows would be said on a history that the base never had in full.
    """
    made = Regenerated()
    for message in asked_turns(prompt):
        made.history.append({"role": message["role"], "content": message["content"]})
        if message["role"] != "user":
            continue
        if not await _answer(str(prompt["id"]), made, client, recipe):
            break
    if not made.segments:
        raise RowFailed("bad_prompt", "the conversation has no user turn")
    return made


def asked_turns(prompt: Mapping[str, Any]) -> list[Message]:
    """The system and user turns; the assistant's are what is made anew. Raises RowFailed."""
    messages: Sequence[Message] = prompt["messages"]
    unknown = {m["role"] for m in messages} - set(ROLES)
    if unknown:
        raise RowFailed("bad_prompt", f"unknown role {sorted(unknown)[0]!r}")
    return [m for m in messages if m["role"] != "assistant"]


async def _answer(row_id: str, made: Regenerated, client: Client, recipe: Recipe) -> bool:
    """Adds the base's next turn; False where the conversation ends."""
    prompt_ids = _template_ids(made.history, recipe.tokens)
    if len(prompt_ids) + recipe.sampling.max_tokens > recipe.max_model_len:
        return _full(made, len(prompt_ids))
    sends_seed = client.endpoint.capabilities.seeds and recipe.sampling.temperature > 0
    seed = row_seed(row_id, len(made.segments)) if sends_seed else None
    answer = await client.ask(made.history, recipe.sampling, seed)
    if not answer.text:
        raise RowFailed("empty", f"answer {len(made.segments) + 1} ended at once")
    made.segments.append(_segment(answer, prompt_ids, made, recipe.tokens))
    made.history.append({"role": "assistant", "content": answer.text})
    made.answers.append(answer)
    return answer.finish_reason != "length"


def _template_ids(history: Sequence[Message], tokens: Tokens) -> list[int]:
    try:
        return tokens.prompt_ids(history)
    except Exception as error:  # noqa: BLE001 - a chat template is a program: it raises what it likes
        raise RowFailed("bad_prompt", f"the chat template refuses it: {' '.join(str(error).split())}") from None


def _full(made: Regenerated, length: int) -> bool:
    """A turn that does not fit ends a conversation, and fails one that has no answer yet."""
    if not made.segments:
        raise RowFailed("too_long", f"{length} prompt tokens and the answer exceed synthesize.max_model_len")
    made.history.pop()
    return False


def _segment(answer: Answer, prompt_ids: list[int], made: Regenerated, tokens: Tokens) -> dict[str, Any]:
    ids, prompt = answer.token_ids, answer.prompt_token_ids
    if ids is None or prompt is None:
        made.token_ids_from = TOKENIZER
        ids, prompt = tokens.answer_ids(answer), prompt_ids
        made.counts_differ += answer.completion_tokens not in (None, len(ids))
    made.prompts_differ += prompt != prompt_ids
    return {"prompt_token_ids": prompt, "token_ids": ids, "finish_reason": answer.finish_reason}
