"""The rules together: each prompt is kept or dropped once, for the first reason, and evaluation stays unseen."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.data import prompt_table
from specdec.data.conversations import Conversation
from specdec.data.lengths import UNKNOWN
from specdec.data.prompt_table import PromptTable, write_table
from specdec.data.prompts import SPLITS, make_prompt, split_of
from specdec.data.selection import DUPLICATE, OVER_LIMIT, Fates, Rules, select

NO_LIMITS: dict[str, int | None] = dict.fromkeys(SPLITS)
WORDS = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def question(number: int) -> str:
    """Thirty words, other ones for every number."""
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, 30))


def placed(split: str, text: str) -> str:
    """The text with a word before it by which it lands in a split."""
    return next(t for t in (f"w{i} {text}" for i in range(1000)) if split_of(prompt(t), 0.3, 0.3) == split)


def prompt(text: str) -> Any:
    return make_prompt(Conversation("c", [{"role": "user", "content": text}]), 1)


def run(
    folder: Path,
    texts: list[str],
    lengths: list[int] | None = None,
    evaluation: dict[str, list[list[str]]] | None = None,
    **limits: int,
) -> tuple[PromptTable, Fates]:
    """Lengths above 10 are too long."""
    table = write_table(map(prompt, texts), 0.3, 0.3, folder / "prompts.arrow")
    fates = Fates(table.split)
    fates.drop(table.duplicates(), DUPLICATE)
    measured = np.where(fates.kept, np.array(lengths or [1] * len(texts)), UNKNOWN)
    select(table, fates, measured, evaluation or {}, Rules(10, 0.8, NO_LIMITS | limits), print)
    return table, fates


def kept(table: PromptTable, fates: Fates, split: str) -> list[str]:
    rows = table.by_id(fates.standing(split)).tolist()
    return [messages[0]["content"] for messages in table.texts[rows]["messages"]]


def test_each_reason(tmp_path: Path) -> None:
    common, seen, bench = question(1), question(2), question(3)
    texts = [
        *(placed(s, common) for s in SPLITS),
        *(placed(s, seen) for s in ("train", "validation")),
        *(placed(s, bench) for s in ("train", "validation", "test")),
        placed("test", f"{common} indeed"),
        placed("train", question(4)),
        placed("train", question(4)),
        placed("train", question(5)),
        placed("validation", question(6)),
    ]
    lengths = [1] * (len(texts) - 2) + [0, 11]
    table, fates = run(tmp_path, texts, lengths, {"bench.jsonl": [["other"], [bench]]})
    assert fates.dropped("test") == {"near-duplicate of a test prompt": 1}
    assert fates.dropped("validation") == {
        "longer than max_prompt_tokens": 1,
        "overlaps the evaluation file bench.jsonl": 1,
        "overlaps a test prompt": 1,
    }
    assert fates.dropped("train") == {
        DUPLICATE: 1,
        "refused by the chat template": 1,
        "overlaps the evaluation file bench.jsonl": 1,
        "overlaps a test prompt": 1,
        "overlaps a validation prompt": 1,
    }
    assert kept(table, fates, "train") == [placed("train", question(4))]
    assert len(kept(table, fates, "test")) == 2


def test_a_prompt_may_have_just_as_many_tokens_as_the_limit(tmp_path: Path) -> None:
    texts = [placed(split, question(number)) for number, split in enumerate(SPLITS)]
    table, fates = run(tmp_path, texts, [10, 10, 10])
    assert [kept(table, fates, split) for split in SPLITS] == [[text] for text in texts]
    _, fates = run(tmp_path, texts, [11, 11, 11])
    assert [fates.dropped(split) for split in SPLITS] == [{"longer than max_prompt_tokens": 1}] * 3


def test_only_what_is_evaluated_is_guarded(tmp_path: Path) -> None:
    """A test prompt that the limit leaves out contaminates nothing."""
    pairs = [(placed("test", question(i)), placed("train", question(i))) for i in range(8)]
    table, fates = run(tmp_path, [text for pair in pairs for text in pair], test=3)
    evaluated = kept(table, fates, "test")
    assert len(evaluated) == 3
    assert sorted(kept(table, fates, "train")) == sorted(train for test, train in pairs if test not in evaluated)
    assert fates.dropped("test") == {OVER_LIMIT: 5}


def test_a_limit_is_filled_with_what_is_left_behind_the_rules(tmp_path: Path) -> None:
    near = [placed("test", f"{question(0)} {i}") for i in range(6)]
    others = [placed("test", question(i)) for i in range(1, 5)]
    table, fates = run(tmp_path, [*near, *others], test=5)
    assert len(set(kept(table, fates, "test")) & set(near)) == 1
    assert len(kept(table, fates, "test")) == 5


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SPLITS), st.integers(0, 9), st.sampled_from([0, 1, 10, 11])), max_size=40),
    st.dictionaries(st.sampled_from(SPLITS), st.integers(1, 6)),
    st.integers(1, 9),
)
def test_every_prompt_is_accounted_for_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, int, int]],
    limits: dict[str, int],
    batch: int,
) -> None:
    texts = [placed(split, question(number)) for split, number, _ in rows]
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_table, "BATCH_ROWS", batch)
        table, fates = run(folder, texts, [length for *_, length in rows], {"bench": [[question(9)]]}, **limits)
        patch.setattr(prompt_table, "BATCH_ROWS", 1)
        _, again = run(folder, texts, [length for *_, length in rows], {"bench": [[question(9)]]}, **limits)
    everything = Counter(split for split, *_ in rows)
    for split in SPLITS:
        found = kept(table, fates, split)
        assert len(found) + sum(fates.dropped(split).values()) == everything[split]
        assert fates.dropped(split) == again.dropped(split)  # whatever the batches
        assert len(set(found)) == len(found) <= limits.get(split, len(rows))
    questions = {s: {" ".join(t.split()[1:]) for t in kept(table, fates, s)} for s in SPLITS}
    assert not questions["train"] & (questions["test"] | questions["validation"] | {question(9)})
    assert not questions["validation"] & (questions["test"] | {question(9)})


def test_a_prompt_is_dropped_once() -> None:
    fates = Fates(np.zeros(3, np.uint8))
    fates.drop(np.array([1]), "a")
    with pytest.raises(AssertionError, match="dropped twice, now as b"):
        fates.drop(np.array([0, 1]), "b")
