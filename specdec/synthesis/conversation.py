"""Regenerates one conversation: every assistant turn anew, each on its own regenerated history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from specdec.config import Sampling
from specdec.synthesis.answer import Answer, RowDropped, RowFailed
from specdec.synthesis.backlog import Job
from specdec.synthesis.endpoint import Endpoint
from specdec.synthesis.request import Draw, Message, row_seed
from specdec.synthesis.tokens import Tokens

ROLES = ("system", "user", "assistant")
SERVER, TOKENIZER = "server", "tokenizer"
CUT_OFF = "length"  # the finish reason of an answer that the token limit ended


class Asker(Protocol):
    """A server that is asked (`specdec.synthesis.lane.Lane`)."""

    @property
    def endpoint(self) -> Endpoint:
        """What it can do."""

    async def chat(self, messages: Sequence[Message], draw: Draw, seed: int | None) -> Answer:
        """The next turn."""

    async def resume(self, token_ids: Sequence[int], draw: Draw, max_tokens: int, seed: int | None) -> Answer:
        """What follows behind token ids."""


@dataclass(frozen=True)
class Recipe:
    """What all rows of a run have in common.

    max_model_len: tokens of prompt and answer together; None leaves it to the server to refuse what is too long.
    base: the identity of the base's files. tokens: its tokenizer; None where the server gives all ids.
    """

    sampling: Sampling
    max_model_len: int | None
    base: Mapping[str, str]
    tokens: Tokens | None


@dataclass
class Regenerated:
    """One conversation on its way: the history so far, one segment an answer, all answers for figures.

    seeded: its answers can be had again, since a seed was sent with each request.
    prompts_differ: prompts that the server rendered to other ids than the base's own template does.
    counts_differ: answers whose re-made ids are not as many as the server counted.
    """

    draw: Draw
    history: list[Message] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    token_ids_from: str = SERVER
    seeded: bool = False
    prompts_differ: int = 0
    counts_differ: int = 0

    def row(self, job: Job, recipe: Recipe) -> dict[str, Any]:
        """The row of `data/synthetic/`."""
        return {
            "id": job.prompt["id"],
            "sample": job.sample,
            "category": job.prompt["category"],
            "messages": self.history,
            "segments": self.segments,
            "sampling": {**self.draw.row(), "seeded": self.seeded},
            "base": dict(recipe.base),
            "token_ids_from": self.token_ids_from,
        }


async def regenerate(job: Job, asker: Asker, recipe: Recipe) -> Regenerated:
    """The conversation of a job, answered by the base. Raises RowFailed, RowDropped, or what the asker raises.

    The conversation ends early behind an answer that was cut off, and before a turn that does not fit the
    context: what follows would be said on a history that the base never had in full.
    """
    made = Regenerated(Draw.of(recipe.sampling, str(job.prompt["id"]), job.sample))
    made.seeded = asker.endpoint.capabilities.seeds and made.draw.temperature > 0
    for message in asked_turns(job.prompt):
        made.history.append({"role": message["role"], "content": message["content"]})
        if message["role"] == "user" and not await _answer(job, made, asker, recipe):
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


async def _answer(job: Job, made: Regenerated, asker: Asker, recipe: Recipe) -> bool:
    """Adds the base's next turn; False where the conversation ends."""
    ids = _template_ids(made.history, recipe.tokens)
    if ids is not None and recipe.max_model_len and len(ids) + made.draw.max_tokens > recipe.max_model_len:
        message = f"{len(ids)} prompt tokens and the answer exceed max_model_len"
        return _too_long(made, RowFailed("too_long", message))
    try:
        answer = await asker.chat(made.history, made.draw, _seed(job, made))
    except RowFailed as failure:
        if failure.kind == "too_long":
            return _too_long(made, failure)
        raise
    return await _add(answer, ids, job, made, asker, recipe)


async def _add(
    answer: Answer, ids: list[int] | None, job: Job, made: Regenerated, asker: Asker, recipe: Recipe
) -> bool:
    if not answer.text:
        raise RowFailed("empty", f"answer {len(made.segments) + 1} ended at once")
    if answer.finish_reason == CUT_OFF and recipe.sampling.cut_off == "continue":
        answer = await _continued(answer, job, made, asker, recipe)
    if answer.finish_reason == CUT_OFF and recipe.sampling.cut_off == "drop":
        return _dropped(made)
    made.segments.append(_segment(answer, ids, made, recipe.tokens))
    made.history.append({"role": "assistant", "content": answer.text})
    made.answers.append(answer)
    return answer.finish_reason != CUT_OFF


async def _continued(answer: Answer, job: Job, made: Regenerated, asker: Asker, recipe: Recipe) -> Answer:
    """A cut-off answer, asked on from its own token ids until it ends or the context is full."""
    while answer.finish_reason == CUT_OFF and (rest := await _rest(answer, job, made, asker, recipe)):
        answer = answer.followed_by(rest, _text(answer, rest, recipe.tokens))
    return answer


async def _rest(answer: Answer, job: Job, made: Regenerated, asker: Asker, recipe: Recipe) -> Answer | None:
    """The next piece of a cut-off answer; None where the context is full."""
    if answer.token_ids is None or answer.prompt_token_ids is None:
        raise RowFailed("no_token_ids", "a cut-off answer cannot be continued: the server gave no token ids for it")
    so_far, room = answer.prompt_token_ids + answer.token_ids, made.draw.max_tokens
    if recipe.max_model_len:
        room = min(room, recipe.max_model_len - len(so_far))
    if room <= 0:
        return None
    try:
        rest = await asker.resume(so_far, made.draw, room, _seed(job, made, answer.pieces))
    except RowFailed as failure:
        if failure.kind != "too_long":
            raise
        return None
    if rest.token_ids is None:
        raise RowFailed("no_token_ids", "the server gave no token ids for the continuation of an answer")
    return rest if rest.token_ids or rest.finish_reason != CUT_OFF else None


def _text(answer: Answer, rest: Answer, tokens: Tokens | None) -> str:
    """The text of two pieces. The cut may go through a character, so the ids are the truth where we can read them."""
    assert answer.token_ids is not None
    assert rest.token_ids is not None
    return tokens.text(answer.token_ids + rest.token_ids) if tokens else answer.text + rest.text


def _seed(job: Job, made: Regenerated, piece: int = 0) -> int | None:
    if not made.seeded:
        return None
    return row_seed(str(job.prompt["id"]), job.sample, len(made.segments), piece)


def _template_ids(history: Sequence[Message], tokens: Tokens | None) -> list[int] | None:
    if tokens is None:
        return None
    try:
        return tokens.prompt_ids(history)
    except Exception as error:  # noqa: BLE001 - a chat template is a program: it raises what it likes
        raise RowFailed("bad_prompt", f"the chat template refuses it: {' '.join(str(error).split())}") from None


def _too_long(made: Regenerated, failure: RowFailed) -> bool:
    """A turn that does not fit ends a conversation, and fails one that has no answer yet."""
    if not made.segments:
        raise failure
    made.history.pop()
    return False


def _dropped(made: Regenerated) -> bool:
    """An answer that is dropped ends a conversation before its question, and drops one that has no other answer."""
    if not made.segments:
        raise RowDropped("cut_off")
    made.history.pop()
    return False


def _segment(
    answer: Answer, prompt_ids: list[int] | None, made: Regenerated, tokens: Tokens | None
) -> dict[str, Any]:
    ids, prompt = answer.token_ids, answer.prompt_token_ids
    if ids is None or prompt is None:
        if tokens is None or prompt_ids is None:
            raise RowFailed("no_token_ids", "the server gave no token ids, and no base's tokenizer was named")
        made.token_ids_from = TOKENIZER
        ids, prompt = tokens.answer_ids(answer), prompt_ids
        made.prompts_differ += answer.prompt_tokens not in (None, len(prompt_ids))
        made.counts_differ += answer.completion_tokens not in (None, len(ids))
    made.prompts_differ += prompt_ids is not None and prompt != prompt_ids
    return {"prompt_token_ids": prompt, "token_ids": ids, "finish_reason": answer.finish_reason}
