"""Token ids by the base's tokenizer: for the length of a prompt, and for answers of servers that give none.

A base may say a text in other tokens than its tokenizer would choose, so re-made ids are second best: they
are checked to decode to the text, and where the server counts its tokens, a count that differs is counted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from specdec.errors import ModelError
from specdec.synthesis.answer import Answer, RowFailed
from specdec.synthesis.request import Message

REPLACEMENT = "\ufffd"  # half a character, cut by the token limit: the bytes behind it are lost


class Tokens(Protocol):
    """What regeneration needs to know of the base's tokenizer."""

    def prompt_ids(self, history: Sequence[Message]) -> list[int]:
        """The ids of a conversation that the base is to continue."""

    def answer_ids(self, answer: Answer) -> list[int]:
        """The ids of an answer, end of turn included. Raises RowFailed('retokenisation')."""

    def text(self, token_ids: Sequence[int]) -> str:
        """What a server shows of these ids: without special tokens."""


class BaseTokens:
    """`Tokens` by the tokenizer in the base's folder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, base: Path) -> "BaseTokens":
        """Raises ModelError where the folder holds no tokenizer with a chat template."""
        from transformers import AutoTokenizer  # seconds to import, and not needed to resume a finished run

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{base} holds no tokenizer: {' '.join(str(error).split())[:200]}") from None
        if not tokenizer.chat_template:
            raise ModelError(f"the tokenizer in {base} has no chat template")
        return cls(tokenizer)

    def prompt_ids(self, history: Sequence[Message]) -> list[int]:
        """The chat template's ids, generation prompt included."""
        ids = self._tokenizer.apply_chat_template(
            list(history), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(ids)

    def answer_ids(self, answer: Answer) -> list[int]:
        """The text's ids; with the end-of-turn token where the base stopped by itself."""
        ids = self._tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if decoded != answer.text or REPLACEMENT in answer.text:
            raise RowFailed("retokenisation", "the answer's text does not survive the base's tokenizer")
        return [*ids, self._tokenizer.eos_token_id] if answer.finish_reason == "stop" else list(ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """Decoded without special tokens, and with no space taken out."""
        decoded: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decoded
