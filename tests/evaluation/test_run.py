"""A whole evaluation: every way that was asked for, lossless, beside a forecast; what cannot be done is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec.drafters import Drafter, Tree, new_drafter
from specdec.errors import ConfigError, DataError, ModelError
from specdec.evaluation import Bootstrap, Plan, evaluate, neighbours
from specdec.evaluation.measure import encode
from specdec.targets import Target
from tests.evaluation.test_measure import ROWS, row
from tests.settings import eagle3_settings, eagle_settings, medusa_settings
from tests.tiny import write_base

SMALL = Bootstrap(100, 0.9, 0)
PLAN = Plan(10, 1, SMALL, (1.0,), (1, 3, 5), (Tree(2, 2, 4),), (4,), 2)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does."""
    monkeypatch.setattr(neighbours, "told", lambda *_: None)


@pytest.fixture(params=[medusa_settings, eagle_settings, eagle3_settings], ids=["medusa", "eagle", "eagle3"])
def drafter(target: Target, request: pytest.FixtureRequest) -> Drafter:
    return new_drafter(target, request.param())


def test_every_way(target: Target, drafter: Drafter) -> None:
    found = evaluate(target, drafter, ROWS, PLAN, print, calibration=[row("why"), row("add 5")])
    own = drafter.draft_tokens
    assert found.lossless
    assert found.main == f"chain of {own}"
    medusa = drafter.method == "medusa"
    lengths = [n for n in (own, 1, 3, 5) if n <= (2 if medusa else 9)]
    wanted = {f"chain of {n}" for n in lengths} | {
        f"chain of {own}, temperature 1",
        "prompt lookup",
        "tree 2,2,4",
        "static tree of 4",
    }
    assert set(found.figures) == wanted
    first = {found.main, "no drafter", "prompt lookup"}
    assert set(found.measured) == first
    assert set(found.others) == wanted - first | {"no drafter, temperature 1"}
    assert [len(prompts) for prompts in found.measured.values()] == [3] * 3
    assert {len(prompts) for prompts in found.others.values()} == {2}
    on_some = f"ways other than {found.main} and prompt lookup were measured on the first 2 prompts"
    short = [f"a chain of {n} was not measured: the drafter has 2 heads" for n in (3, 5) if medusa]
    built = len(found.static_trees["static tree of 4"].paths)
    few = [f"a static tree of 4 nodes has {built}: no other one was ever right"] if built < 4 else []
    assert found.notes == [*few, *short, on_some]
    greedy = [name for name in wanted if "temperature" not in name and name != found.main]
    assert {name for name, figures in found.figures.items() if "to_main" in figures} == set(greedy)
    assert found.forecast is not None
    beside = found.forecast["measured"]
    assert set(beside) == {*(f"chain of {n}" for n in lengths), "static tree of 4"}
    assert set(found.forecast["best"]) == set(found.forecast["best_chain"]) == {"1", "4", "16"}
    json.dumps(found.all_figures(), allow_nan=False)
    configs = found.speculative_configs(drafter.method, "models/d")
    assert set(configs) == {"1", "4", "16"}
    for size, config in configs.items():
        length = found.forecast["best_chain"][size]["setting"]["tokens"]
        wanted = {"method": drafter.method, "model": "models/d", "num_speculative_tokens": length}
        assert config == (wanted if length else None)
    main = found.main_figures(0.9)
    assert main["lossless"] is True
    assert main["acceptance_length"] == found.figures[found.main]["acceptance_length"]


def test_other_work_on_the_machine_is_noted(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "told", lambda *_: "busy")
    monkeypatch.setattr(neighbours, "SHORTEST", 0.0)
    drafter = new_drafter(target, medusa_settings())
    assert "busy" in evaluate(target, drafter, ROWS[:1], Plan(4, 1, SMALL), print).notes


def test_long_chains_and_full_contexts_are_timed(target: Target) -> None:
    """More tokens than are timed otherwise, behind prompts at the context's end."""
    drafter = new_drafter(target, eagle_settings())
    long = [row("long " * n) for n in (45, 46)]
    prompt = encode(target, long, 4, print)[0][0].contexts[0]
    assert len(prompt) > target.max_positions // 2
    found = evaluate(target, drafter, long, Plan(4, 1, SMALL, (), (40,), (), (2,)), print)
    assert found.forecast is None or "chain of 40" in found.forecast["measured"]
    short = evaluate(target, drafter, ROWS[:2], Plan(4, 1, SMALL, (), (40,), (), (2,)), print)
    assert short.forecast is not None
    assert "chain of 40" in short.forecast["measured"]


def test_of_a_static_tree_is_said_what_was_built(target: Target) -> None:
    plan = Plan(6, 1, SMALL, static_nodes=(100_000,))
    found = evaluate(target, new_drafter(target, medusa_settings()), ROWS[:2], plan, print)
    built = len(found.static_trees["static tree of 100000"].paths)
    assert f"a static tree of 100000 nodes has {built}: no other one was ever right" in found.notes


def test_what_was_left_out_and_what_was_never_drafted_is_noted(target: Target) -> None:
    drafter = new_drafter(target, medusa_settings())
    found = evaluate(target, drafter, [*ROWS, row("long " * 99)], Plan(1, 1, SMALL), print)
    some = f"1 of {len(ROWS) + 1} prompts were left out: they are longer than the {target.max_positions} tokens that "
    assert [note.startswith(some) for note in found.notes] == [True, False, False]
    assert found.notes[-1].startswith("nothing was drafted: every answer ended with")


def test_the_forecast_of_acceptance_is_what_is_measured_on_the_same_prompts(target: Target) -> None:
    """Ranks are counted at the anchors of the chain, so rank 0 of the first level is its first position's rate."""
    drafter = new_drafter(target, medusa_settings())
    found = evaluate(target, drafter, ROWS, Plan(10, 1, SMALL, (), (1,), (), (2,)), print)
    seen = "ranks were counted on the prompts that are measured: what is predicted has seen them"
    assert [note for note in found.notes if not note.startswith("a static tree of 2 nodes has 1: ")] == [seen]
    assert found.forecast is not None
    said = found.forecast["measured"]["chain of 1"]["acceptance_length"]
    assert said["predicted"] == pytest.approx(said["measured"], abs=0.1)
    assert isinstance(found.rates, np.ndarray)


def test_a_base_that_verifies_no_trees(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise ModelError("it does not keep to the mask")

    monkeypatch.setattr(Target, "check_trees", refuse)
    found = evaluate(target, new_drafter(target, medusa_settings()), ROWS, PLAN, print)
    assert "no trees: it does not keep to the mask" in found.notes
    assert found.notes.count("no trees: it does not keep to the mask") == 1
    assert not any("tree" in name for name in found.figures)
    assert found.forecast is None
    own = {"method": "medusa", "model": "m", "num_speculative_tokens": 2}
    assert found.speculative_configs("medusa", "m") == {"1": own}


def test_one_prompt_has_no_interval(target: Target) -> None:
    found = evaluate(target, new_drafter(target, medusa_settings()), ROWS[:1], PLAN, print)
    main = found.figures[found.main]
    assert main["acceptance_length"]["low"] is None
    assert main["speedup"]["high"] is None
    assert found.figures["prompt lookup"]["to_main"]["p_value"] is None
    assert found.figures["prompt lookup"]["to_main"]["verdict"] == "no difference"


def test_a_tree_named_twice_is_measured_once(target: Target) -> None:
    twice = Plan(8, 1, SMALL, (), (1, 1), (Tree(2, 2, 3), Tree(2, 2, 3)), (3, 3))
    found = evaluate(target, new_drafter(target, medusa_settings()), ROWS, twice, print)
    assert sorted(found.figures) == ["chain of 1", "chain of 2", "prompt lookup", "static tree of 3", "tree 2,2,3"]


@pytest.mark.parametrize("temperatures", [(-1.0,), (1.0, 1.0000000001)])
def test_temperatures_are_looked_at_before_anything_is_measured(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        Plan(8, 1, SMALL, temperatures)


def test_a_long_chain_is_timed_whole(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and drafting are counted and timed as deep as the longest chain that is measured."""
    drafter = new_drafter(target, eagle_settings())
    drafter.draft_tokens = 7
    found = evaluate(target, drafter, ROWS, Plan(10, 1, SMALL), print)
    assert found.forecast is not None
    assert set(found.forecast["times"]["draft"]) == {str(n) for n in range(1, 8)}
    assert "chain of 7" in found.forecast["measured"]


def test_a_base_of_few_positions_has_no_forecast(tmp_path: Path) -> None:
    write_base(tmp_path / "short", max_position_embeddings=33)
    target = Target.from_pretrained(tmp_path / "short", device="cpu")
    found = evaluate(target, new_drafter(target, medusa_settings()), [row("hi")], Plan(6, 1, SMALL), print)
    assert found.forecast is None


def test_no_prompt_for_calibration_fits(target: Target) -> None:
    with pytest.raises(DataError, match="no prompt for calibration fits tiny-llama"):
        evaluate(target, new_drafter(target, medusa_settings()), ROWS, PLAN, print, [row("long " * 99)])


@pytest.mark.parametrize("make", [medusa_settings, eagle3_settings])
def test_a_base_that_ends_at_once(target: Target, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """No step is made, so nothing is accepted: 1 token a step, and no figure that is no number."""
    monkeypatch.setattr(target, "stop_ids", frozenset(range(target.vocab_size)))
    found = evaluate(target, new_drafter(target, make()), ROWS, PLAN, print)
    main = found.figures[found.main]
    assert main["acceptance_length"]["value"] == 1
    assert (main["steps"], main["tokens"], main["lossless"]) == (0, 3, True)
    assert main["draft_share"] == 0
    json.dumps(found.all_figures(), allow_nan=False)
