"""A prompt as the set of its word 5-grams ("shingles"), by which near-duplicates are found. See docs/data.md.

A shingle is a 64-bit number made of the hashes of its words, so a prompt is a sorted array of them and nothing of
its text is held. Different shingles get one number in about n^2 / 2^64 of n: never, in practice.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

SIZE = 5  # words
COMMON_SHARE = 0.01  # of the prompts: what stands in more of them is a template's
COMMON_AT_LEAST = 10  # prompts

# Thai to Lao, Burmese, Khmer, kana, Han: no spaces between words, so every character counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30fa\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,64}}")


@lru_cache(1 << 16)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


# One for each place in a shingle, so that the order of words counts; odd, so that no bit of a word is lost.
_FACTORS = np.array([_number(f"place {i}") | 1 for i in range(SIZE)], np.uint64)


def shingles(turns: Iterable[str]) -> np.ndarray:
    """uint64[n], sorted, each once: the 5-grams of every turn's words; a shorter turn is one shingle of its own."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(_grams(words(turn)) for turn in turns)]))


def words(text: str) -> list[str]:
    """Letters and digits alone: punctuation, case and the width of characters make no difference."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def common(sets: Sequence[np.ndarray]) -> np.ndarray:
    """uint64[n], sorted: the shingles of so many of these prompts that they are a template's and tell nothing."""
    found, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *sets]), return_counts=True)
    return found[counts > max(COMMON_AT_LEAST, COMMON_SHARE * len(sets))]


def without(shingles: np.ndarray, common: np.ndarray) -> np.ndarray:
    """What a prompt says beside the templates. A prompt of nothing else keeps all: it is one of many copies."""
    rare = shingles[~np.isin(shingles, common, assume_unique=True)]
    return rare if len(rare) else shingles


def _grams(words: list[str]) -> np.ndarray:
    numbers = np.fromiter(map(_number, words), np.uint64, len(words))
    size = min(SIZE, len(words))
    count = len(words) - size + 1 if words else 0
    grams = np.zeros(count, np.uint64)
    for place in range(size):
        grams += _FACTORS[place] * numbers[place : place + count]
    return grams
