"""Measuring: counts as defined, differences found, prompts that do not fit said."""

import importlib
from typing import Any

import pytest
import torch

from specdec.decoding import Step, verify
from specdec.drafters import Drafter, DraftState, Draw, Proposal, Shape, new_drafter
from specdec.errors import DataError
from specdec.evaluation import Bootstrap, losslessness, measure, summarize
from specdec.evaluation.measure import PromptMeasurement, _Timed, first_difference
from specdec.evaluation.summary import conditional_rates
from specdec.targets import Target
from tests.decoding.oracle import Oracle
from tests.settings import medusa_settings


def row(text: str, category: str = "c") -> dict[str, Any]:
    return {"id": text, "category": category, "messages": [{"role": "user", "content": text}]}


ROWS = [row("add two numbers"), row("what is a list", "d"), row("x", "d")]
BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return new_drafter(target, medusa_settings())


def test_figures_of_a_real_run(target: Target, drafter: Drafter) -> None:
    measured = measure(target, drafter, [*ROWS, row("long " * 99)], 12, 2, print)
    assert measured.skipped == 1
    figures = summarize(measured, BOOTSTRAP)
    assert figures["lossless"]
    assert figures["prompts"] == 3
    assert figures["skipped_prompts"] == 1
    length = figures["acceptance_length"]["value"]
    steps = sum(p.steps for p in measured.prompts)
    assert length == pytest.approx(1 + sum(p.accepted for p in measured.prompts) / steps)
    assert sum(figures["position_rates"]) == pytest.approx(length - 1)
    assert all(len(p.seconds_plain) == len(p.seconds_drafter) == 2 for p in measured.prompts)
    assert set(figures["categories"]) == {"c", "d"}
    assert figures["categories"]["c"]["acceptance_length"]["low"] is None
    record = losslessness(measured, "float32")
    assert record["lossless"]
    assert record["prompts"] == 3


def test_a_changed_output_is_found(target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification that accepts everything (`<=` for `<`, say) must show up as not lossless."""
    monkeypatch.setattr(verify, "accepted_path", lambda draft, _chosen: torch.arange(len(draft.token_ids)))
    measured = measure(target, drafter, ROWS, 12, 1, print)
    assert not summarize(measured, BOOTSTRAP)["lossless"]
    record = losslessness(measured, "float32")
    assert record["differing"]
    assert all(entry["first_difference"] > 0 for entry in record["differing"])


def test_counts_are_those_of_the_decoding(target: Target) -> None:
    """A drafter that errs by a known plan: what is accepted, where, and which tokens were drafted is known too."""
    from specdec.data.prompts import prompt_ids
    from specdec.decoding import generate

    ids = prompt_ids(target.tokenizer, ROWS[0]["messages"])
    truth = generate(target, None, ids, 12).token_ids
    assert len(truth) == 12

    class Again(Oracle):
        """The plan begins anew with every prompt's first draft (the newest token is the answer's first)."""

        def propose(
            self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
        ) -> Proposal:
            if budget == 11:
                self.place, self.step = 1, 0
            return super().propose(state, budget, tree)

    # Three drafts a step, of which 1, 0, 3 and 1 are right, and then all: 1 + 2 + 1 + 4 + 2 + 2 tokens.
    oracle = Again(truth, [1, 0, None, 1], 3, target.vocab_size)
    (found,) = measure(target, oracle, ROWS[:1], 12, 2, print).prompts
    assert found.first_difference is None
    right = [1, 0, 3, 1, 2]  # of the last step the limit leaves room for two
    assert found.steps == 5
    assert found.accepted_at == [4, 2, 1]
    marks = [False] + [mark for a in right for mark in [True] * a + [False]]
    assert found.draft_accepted == marks[:12]


def test_a_difference_in_any_pass_counts(target: Target) -> None:
    found = PromptMeasurement("i", "c", 1, [1, 2], [False, True], 1, [1])
    same = _Timed([Step([1, 2], 1, 1)], 1.0)
    other = _Timed([Step([1, 3], 1, 1)], 1.0)
    for drafted in (same, other, same):
        found.add_pass(same, drafted)
    assert found.first_difference == 1


def test_who_goes_first_alternates(target: Target, drafter: Drafter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("specdec.evaluation.measure")
    order: list[bool] = []
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda t, d, *rest: order.append(d is None) or decode(t, d, *rest))
    measure(target, drafter, ROWS[:2], 4, 2, print)
    passes = order[2 * len(ROWS[:2]) :][::2]  # behind the warm-up, who went first
    assert passes == [True, False, False, True]


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_conditional_rates() -> None:
    assert conditional_rates([0.5, 0.25, 0.0]) == [0.5, 0.5, 0.0]
    assert conditional_rates([0.0, 0.0]) == [0.0, 0.0]


def test_speedup_is_of_all_seconds() -> None:
    def prompt(plain: list[float], drafter: list[float]) -> PromptMeasurement:
        return PromptMeasurement("i", "c", 1, [1, 2], [False, True], 1, [1], None, plain, drafter)

    from specdec.evaluation import Measurement

    figures = summarize(Measurement([prompt([3, 1], [1, 1]), prompt([2, 2], [1, 1])], 0), BOOTSTRAP)
    assert figures["speedup"]["value"] == pytest.approx(2.0)
    assert figures["tokens_per_second"] == {"plain": pytest.approx(1.0), "drafter": pytest.approx(2.0)}


def test_nothing_to_measure(target: Target, drafter: Drafter) -> None:
    with pytest.raises(DataError, match="0 were given"):
        measure(target, drafter, [], 12, 1, print)
