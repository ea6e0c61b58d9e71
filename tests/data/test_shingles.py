"""Prompts as sets of word 5-grams: what makes no difference, what does, and what is a template."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specdec.data.shingles import common, shingles, without, words


def same(a: str, b: str) -> bool:
    return np.array_equal(shingles([a]), shingles([b]))


def test_case_width_and_punctuation_make_no_difference() -> None:
    assert words("Ｈow—is: the STRASSE_1 (straße)?") == ["how", "is", "the", "strasse_1", "strasse"]
    assert same("What is the capital of France?", "what is THE capital, of france")


def test_order_and_every_word_count() -> None:
    assert not same("the dog bites the man", "the man bites the dog")
    assert not same("one two three four five", "one two three four six")
    assert not same("one two", "one two three")


def test_every_five_words_are_a_shingle_and_a_short_turn_is_one() -> None:
    assert [len(shingles([" ".join("abcdefgh"[:n])])) for n in range(9)] == [0, 1, 1, 1, 1, 1, 2, 3, 4]
    assert len(shingles(["a b c d e f", "g"])) == 3  # none across the turns
    assert len(shingles(["a b c d e f", "F", "f!"])) == 3
    assert len(shingles(["?!"])) == len(shingles([])) == 0


def test_scripts_without_spaces_go_by_characters() -> None:
    assert words("東京タワーは333m") == [*"東京タワーは", "333m"]
    near, other = "日本の首都はどこですか、教えてください", "日本の首都はどこですか、教えて下さい"
    assert 0.5 < len(np.intersect1d(shingles([near]), shingles([other]))) / len(shingles([near])) < 1
    assert words("서울 타워") == ["서울", "타워"]


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_the_number_stands_for_the_words(letters: list[str]) -> None:
    grams = {tuple(letters[i : i + 5]) for i in range(max(1, len(letters) - 4))} - {()}
    assert len(shingles([" ".join(letters)])) == len(grams)


@given(st.text())
def test_any_text_has_shingles(text: str) -> None:
    found = shingles([text])
    assert found.dtype == np.uint64
    assert (np.diff(found.astype(object)) > 0).all()
    assert (len(found) == 0) == (words(text) == [])


def test_what_stands_in_many_prompts_is_a_template() -> None:
    template = "Please answer the following question in one short sentence: what is number"
    sets = [shingles([f"{template} {i}?"]) for i in range(20)]
    found = common(sets)
    assert np.array_equal(found, shingles([template]))
    assert len(common(sets[:10])) == 0  # ten are not many
    assert len(without(sets[0], found)) == len(sets[0]) - len(found) > 0
    assert np.array_equal(without(found, found), found)  # nothing else: all of it counts


def test_many_grows_with_the_dataset() -> None:
    sets = [np.array([1 if i < 30 else 10 + i, 2 if i < 31 else 10_000 + i], np.uint64) for i in range(3000)]
    assert common(sets).tolist() == [2]
