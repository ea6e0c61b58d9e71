"""Overlaps: the index against plain sets, the thresholds, and the order in which duplicates fall."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.data import overlap
from specdec.data.overlap import Distinct, Guard, ShingleIndex
from specdec.data.shingles import common, shingles

NONE = np.empty(0, np.uint64)
SETS = st.lists(st.sets(st.integers(0, 12), max_size=8), max_size=8)


def array(*numbers: int) -> np.ndarray:
    return np.array(sorted(numbers), np.uint64)


@given(SETS, st.sets(st.integers(0, 20)))
def test_the_index_counts_as_sets_do(sets: list[set[int]], asked: set[int]) -> None:
    numbers, counts = ShingleIndex([array(*s) for s in sets]).shared(array(*asked))
    wanted = [(i, len(s & asked)) for i, s in enumerate(sets) if s & asked]
    assert list(zip(numbers.tolist(), counts.tolist(), strict=True)) == wanted


@given(SETS, st.sets(st.integers(0, 20)), st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_the_guard_goes_by_containment(sets: list[set[int]], asked: set[int], threshold: float) -> None:
    guard = Guard(threshold)
    for number, s in enumerate(sets):
        guard.add(str(number), [array(*s)], NONE)
    wanted = next((str(i) for i, s in enumerate(sets) if s and len(s & asked) >= threshold * len(s) - 1e-9), None)
    assert guard.reasons([array(*asked)]) == [wanted]


@given(SETS, st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 8))
def test_distinct_goes_by_jaccard_whatever_the_blocks(sets: list[set[int]], threshold: float, block: int) -> None:
    distinct = Distinct(threshold, NONE)
    arrays = [array(*s) for s in sets]
    found = [r for i in range(0, len(sets), block) for r in distinct.reasons(arrays[i : i + block])]
    kept: list[set[int]] = []
    for s, reason in zip(sets, found, strict=True):
        near = any(s & k and len(s & k) >= threshold * len(s | k) - 1e-9 for k in kept)
        assert (reason is not None) == near
        kept += [] if near else [s]


def test_the_cost_of_many_distinct_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the prompts are indexed little more than twice as often: not all of them again with each block."""
    indexed: list[int] = []

    class Counted(ShingleIndex):
        def __init__(self, sets: Sequence[np.ndarray]):
            super().__init__(sets)
            indexed.append(len(sets))

    monkeypatch.setattr(overlap, "ShingleIndex", Counted)

    def cost(blocks: int) -> int:
        indexed.clear()
        distinct = Distinct(0.8, NONE)
        for block in range(blocks):
            sets = [array(number) for number in range(4 * block, 4 * block + 4)]
            assert distinct.reasons(sets) == [None] * 4
        assert all(reason for n in range(4 * blocks) for reason in distinct.reasons([array(n)]))
        return sum(indexed)

    assert cost(256) < 2.4 * cost(128)
    assert cost(256) < 12 * 4 * 256


def test_what_has_no_words_overlaps_nothing() -> None:
    guard = Guard(0.8)
    guard.add("test", [NONE, array(1)], NONE)
    assert guard.reasons([NONE, array(1)]) == [None, "test"]
    assert Distinct(0.8, NONE).reasons([NONE, NONE]) == [None, None]


METHODS = [
    f"What is the method `{a}.{b}` of `{c}` for?" for a in ("str", "Path") for b in ("add", "pop") for c in "xy"
]
INSTRUCTION = "You get a review. Say in one word, and without any explanation, whether its author liked the film."
REVIEWS = [f"{INSTRUCTION} Review: {text}" for text in ("Great film", "So boring", "I fell asleep", "Loved it")]


@pytest.mark.parametrize("prompts", [METHODS, [f"{text} {i}" for i in range(5) for text in REVIEWS]])
def test_one_template_with_other_names_is_no_duplicate(prompts: list[str]) -> None:
    sets = [shingles([p]) for p in prompts]
    templates = common(sets)
    assert Distinct(0.8, templates).reasons(sets) == [None] * len(sets)
    guard = Guard(0.8)
    guard.add("test", sets[1:], templates)
    assert guard.reasons(sets[:2]) == [None, "test"]


def test_a_reworded_prompt_is_a_duplicate() -> None:
    question = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many are these?"
    sets = [shingles([text]) for text in (question, f"Please solve: {question.upper()}", f"{question} " * 3)]
    assert Distinct(0.8, NONE).reasons(sets)[:2] == [None, "near-duplicate of a test prompt"]
    longer = shingles(
        [f"{question} And here is another one, of quite some length, that has to be solved as well, now."]
    )
    assert Distinct(0.8, NONE).reasons([sets[0], longer])[1] is None
    guard = Guard(0.8)
    guard.add("test", [sets[0]], NONE)
    assert guard.reasons([longer, sets[1]]) == ["test", "test"]


def test_just_the_threshold_overlaps() -> None:
    guard = Guard(0.5)
    guard.add("said", [np.arange(4, dtype=np.uint64)], np.empty(0, np.uint64))
    assert guard.reasons([np.arange(n, dtype=np.uint64) for n in (1, 2, 3)]) == [None, "said", "said"]
