"""Where a generation ends: behind a stop token, or behind the token that completes a stop string."""

from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError


@dataclass(frozen=True)
class Stop:
    """token_ids: stop tokens. strings: they end the answer wherever they appear in its text (needs the tokenizer);
    the token that completes one stays, as in transformers."""

    token_ids: frozenset[int]
    strings: tuple[str, ...] = ()
    tokenizer: Any = None

    def __post_init__(self) -> None:
        assert self.tokenizer is not None or not self.strings, "stop strings are looked for in text"
        if not all(self.strings):
            raise ConfigError("a stop string is empty, and would end every answer at once: leave it out")

    def cut(self, made: list[int], tokens: list[int], limit: int) -> tuple[list[int], bool]:
        """(what of `tokens` is said behind `made`, `limit` tokens at most; whether it ends there)."""
        for i, token in enumerate(tokens[:limit]):
            if token in self.token_ids or (self.strings and self._completed(made, tokens[: i + 1])):
                return tokens[: i + 1], True
        return tokens[:limit], False

    def _completed(self, made: list[int], tokens: list[int]) -> bool:
        """A stop string ends with the last of `tokens`: none was there before, or nothing would come behind it."""
        longest = max(len(string.encode()) for string in self.strings)  # in tokens too, each being a byte or more
        # Behind a token of text: some tokenizers leave out a space with which a text begins, and this one goes on.
        lead = self.tokenizer.encode("a", add_special_tokens=False)[-1:]
        text = self.tokenizer.decode([*lead, *[*made[-longest:], *tokens][-longest - 1 :]])
        text = text[len(self.tokenizer.decode(lead)) :]
        return any(string in text for string in self.strings)
