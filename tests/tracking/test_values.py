"""What may be stored: flat, finite, short, and without secrets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tracking.values import LONGEST_VALUE, flatten, name_of, numbers, parameters, redact, shorten

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just("text")
NAMES = st.text("abc", min_size=1, max_size=3)
TREES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda c: st.lists(c, max_size=2) | st.dictionaries(NAMES, c, max_size=2), max_leaves=5),
    max_size=3,
)


@given(TREES)
def test_no_leaf_is_lost(tree: dict[str, object]) -> None:
    def count(value: object) -> int:
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
        return sum(map(count, items)) if items else 1

    assert len(flatten(tree)) == sum(map(count, tree.values()))


@given(TREES)
def test_only_finite_numbers_become_metrics(tree: dict[str, object]) -> None:
    finite, strange = numbers(tree)
    assert all(math.isfinite(value) for value in finite.values())
    assert all(not math.isfinite(float(value)) for value in strange.values())


def test_numbers_come_from_tensors_and_truths() -> None:
    values = {"t": torch.tensor(2.5), "yes": True, "list": [1, None, "x"], "inf": -math.inf}
    assert numbers(values) == ({"t": 2.5, "yes": 1.0, "list/0": 1.0}, {"inf": "-inf"})


@given(st.text(max_size=300))
def test_names_are_what_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(name_of(name))


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("files//data/x.jsonl/speedup", "files/_/data/x.jsonl/speedup"),
        ("files/../x.jsonl/a", "files/_/x.jsonl/a"),
        ("files/./x/", "files/_/x/_"),
        ("test/loss", "test/loss"),
    ],
)
def test_any_path_may_be_part_of_a_name(name: str, stored: str) -> None:
    assert name_of(name) == stored


@pytest.mark.parametrize("value", ["x" * 501, "é" * 9000])
def test_long_values_are_cut_visibly(value: str) -> None:
    short = parameters({"a": value})["a"]
    assert len(short) <= LONGEST_VALUE
    assert short.endswith(f"({len(value)} characters)")
    assert shorten("fine") == "fine"


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefghij")
    stored = parameters(
        {
            "url": "https://user:pw@host/repo.git",
            "engine_args": ["--api-key", "k1", "--hf-token=k2", "--max-tokens", "12", "--token-limit=3"],
            "api_key": "k3",
            "note": "uses abcdefghij inside",
            "max_tokens": 80,
        }
    )
    assert stored["url"] == "https://***@host/repo.git"
    assert stored["engine_args"] == str(
        ["--api-key", "***", "--hf-token=***", "--max-tokens", "12", "--token-limit=3"]
    )
    assert stored["api_key"] == "***"
    assert stored["note"] == "uses *** inside"
    assert stored["max_tokens"] == "80"
    assert redact("plain") == "plain"
