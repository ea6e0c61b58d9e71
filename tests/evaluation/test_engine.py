"""Figures of a drafter in an engine, from stand-in servers whose every count and pause is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from specdec.decoding import generate
from specdec.drafters import new_drafter
from specdec.errors import ServerError
from specdec.evaluation import engine
from specdec.evaluation.engine import (
    EnginePlan,
    Load,
    _at_load,
    benchmark,
    best_settings,
    predict,
    speculative_config,
)
from specdec.evaluation.engine_client import Answer
from specdec.evaluation.summary import Bootstrap
from specdec.serving.vllm import RunningVllm, Serving
from specdec.targets import Target
from tests.evaluation.engines import KEY, FakeVllm, listening
from tests.settings import medusa_settings

LENGTH = 13
PROMPTS = [[10 * (i + 1), 7, 8] for i in range(6)]
SCRIPT = [2, 0, 0, 1, 2, 1, 0, 2, 2, 0, 1, 0, 0, 2, 1, 0, 1, 2, 0]  # accepted of two draft tokens, by steps
MEAN = sum(SCRIPT) / len(SCRIPT)
LOG = Path("server.log")


def plan(**changes: Any) -> EnginePlan:
    settings: dict[str, Any] = {
        "draft_lengths": (2,),
        "concurrencies": (1, 3),
        "max_new_tokens": LENGTH,
        "repeats": 2,
        "bootstrap": Bootstrap(200, 0.9, 0),
        "dtype": "float32",
        "max_model_len": 64,
    }
    return EnginePlan(**{**settings, **changes})


class Engines:
    """What `running_vllm` starts here: `plain` without a drafter, else `drafted`."""

    def __init__(self, plain: FakeVllm, drafted: FakeVllm):
        self.plain, self.drafted = plain, drafted
        self.started: list[Serving] = []
        self.running = 0

    @contextmanager
    def running_vllm(self, serving: Serving, log: Path, _say: Any, _seconds: float) -> Iterator[RunningVllm]:
        self.started.append(serving)
        with listening(self.drafted if serving.speculative else self.plain) as url:
            self.running += 1
            try:
                yield RunningVllm(url, KEY, "/base")
            finally:
                self.running -= 1


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines(FakeVllm(LENGTH, seconds=0.004), FakeVllm(LENGTH, list(SCRIPT), seconds=0.004))
    monkeypatch.setattr(engine, "running_vllm", made.running_vllm)
    monkeypatch.setattr(engine, "PAUSE", 0.0)
    return made


@pytest.fixture
def measured(engines: Engines, target: Target) -> dict[str, Any]:
    return run(target)


def run(target: Target, **changes: Any) -> dict[str, Any]:
    drafter = new_drafter(target, medusa_settings())
    folder = Path("models/drafters/one")
    return benchmark(
        (target, Path("base")), (drafter, folder), PROMPTS, plan(**changes), Path("logs"), lambda _: None
    )


def test_acceptance_is_the_servers_own_count(engines: Engines, measured: dict[str, Any]) -> None:
    found = measured["draft_lengths"]["2"]
    # The script's mean, but for where an answer ends within it; warm-up is left out of both.
    assert found["acceptance_length"]["value"] == pytest.approx(1 + MEAN, abs=0.15)
    assert found["position_rates"] == pytest.approx([11 / 19, 6 / 19], abs=0.1)
    assert found["conditional_rates"][1] == pytest.approx(0.5, abs=0.15)
    low, high = (found["acceptance_length"][end] for end in ("low", "high"))
    assert low < found["acceptance_length"]["value"] < high
    together = found["loads"]["3"]["acceptance_length"]
    assert together["low"] is None, "six prompts went in one chunk: two passes over it are no two prompts"
    assert measured["prompts"] == len(PROMPTS)


def test_the_difference_is_to_our_own_decoding(measured: dict[str, Any], target: Target) -> None:
    found = measured["draft_lengths"]["2"]
    drafter = new_drafter(target, medusa_settings())
    own = predict(target, drafter, PROMPTS, 2, LENGTH, lambda _: None)
    made = [generate(target, drafter, prompt, LENGTH) for prompt in PROMPTS]  # its own chain is one of two
    assert own.steps == [one.steps for one in made], "the pass over the prompt is no step, as vLLM counts"
    assert own.accepted == [one.accepted for one in made]
    assert own.answers == [one.token_ids for one in made]
    expected = 1 + sum(own.accepted) / sum(own.steps)
    assert found["predicted"]["value"] == pytest.approx(expected)
    assert found["difference"] == pytest.approx(found["acceptance_length"]["value"] / expected - 1)
    assert found["same_as_ours"]["share"] == 0.0, "the stand-ins count upwards, and our base does not"


def test_speed_is_of_the_same_prompts_by_turns(engines: Engines, measured: dict[str, Any]) -> None:
    loads = measured["draft_lengths"]["2"]["loads"]
    assert set(loads) == {"1", "3"}
    for load in loads.values():
        assert load["speedup"]["low"] < load["speedup"]["value"] < load["speedup"]["high"]
        assert load["tokens_per_second"]["drafter"] > 0
        for side in ("plain", "drafter"):
            first, whole = load["time_to_first_token"][side], load["latency"][side]
            assert 0.004 <= first["p50"] < whole["p50"] <= whole["p90"] <= whole["p99"]
    assert (engines.plain.most_in_flight, engines.drafted.most_in_flight) == (3, 3)


def test_the_speedup_is_of_request_times_a_token() -> None:
    """Of two prompts; the second answer is twice as long with the drafter, and as long as that for each token."""
    load = Load([[Answer([1] * 4, 2.0, 0.5)] * 2, [Answer([1] * 4, 3.0, 0.5)]], [[], []])
    load.drafted = [[Answer([1] * 4, 1.0, 0.25)] * 2, [Answer([1] * 8, 4.0, 0.25)]]
    load.seconds, load.tokens = {"plain": 10.0, "drafter": 5.0}, {"plain": 20, "drafter": 20}
    found = _at_load(load, 3, Bootstrap(200, 0.9, 0))
    assert found["speedup"]["value"] == pytest.approx((2 * 2.0 + 2 * 3.0) / (2 * 1.0 + 4.0))
    assert found["tokens_per_second"] == {"plain": 2.0, "drafter": 4.0}
    assert found["time_to_first_token"]["drafter"]["p50"] == 0.25
    assert found["latency"]["plain"]["p50"] == 2.0


def test_a_stall_in_one_of_three_passes_is_no_speedup() -> None:
    plain, drafted = Answer([1] * 4, 2.0, 0.5), Answer([1] * 4, 1.0, 0.25)
    load = Load([[plain, Answer([1] * 4, 90.0, 80.0), plain]] * 3, [[drafted] * 3] * 3)
    load.seconds, load.tokens = {"plain": 10.0, "drafter": 5.0}, {"plain": 20, "drafter": 20}
    speedup = _at_load(load, 3, Bootstrap(200, 0.9, 0))["speedup"]
    assert speedup == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_what_the_servers_are_asked(engines: Engines, measured: dict[str, Any]) -> None:
    for fake in (engines.plain, engines.drafted):
        warm_up = 2 * (1 + 3)
        assert len(fake.requests) == warm_up + 2 * 2 * len(PROMPTS), "two loads, two passes"
        assert all(asked["temperature"] == 0 and asked["max_tokens"] == LENGTH for asked in fake.requests)
        assert all(asked["return_token_ids"] and asked["stream"] for asked in fake.requests)
    plain, drafted = engines.started
    assert plain.speculative is None
    wanted = {"method": "medusa", "model": str(Path("models/drafters/one").resolve()), "num_speculative_tokens": 2}
    assert drafted.speculative == wanted
    assert (drafted.base, drafted.dtype, drafted.max_model_len) == (Path("base").resolve(), "float32", 64)
    assert engines.running == 0


def test_one_server_without_a_drafter_beside_each_draft_length(engines: Engines, target: Target) -> None:
    found = run(target, draft_lengths=(2, 1), concurrencies=(1,), repeats=1)
    assert list(found["draft_lengths"]) == ["2", "1"]
    assert [s.speculative and s.speculative["num_speculative_tokens"] for s in engines.started] == [None, 2, 1]


def test_answers_that_differ_are_counted(engines: Engines, target: Target) -> None:
    engines.drafted.wrong = (20, 50)
    found = run(target, concurrencies=(1,), repeats=1)["draft_lengths"]["2"]
    assert found["same_as_plain"] == {"share": pytest.approx(4 / 6), "first_difference": 2}


def test_counts_that_come_late_are_waited_for(engines: Engines, target: Target) -> None:
    """A server sends an answer's last tokens before it counts them: they are no one else's."""
    engines.drafted.late = engines.plain.late = 0.05
    found = run(target, concurrencies=(2,), repeats=1)["draft_lengths"]["2"]
    assert found["acceptance_length"]["value"] == pytest.approx(1 + MEAN, abs=0.2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dies_after": 9}, r"HTTP 500\): .*EngineCore died"),
        ({"without_ids": True}, "gave no token ids: this vLLM is too old"),
    ],
)
def test_a_server_that_fails_is_one_line(
    engines: Engines, target: Target, changes: dict[str, Any], told: str
) -> None:
    for name, value in changes.items():
        setattr(engines.drafted, name, value)
    with pytest.raises(ServerError, match=told) as caught:
        run(target)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert engines.running == 0


def test_a_server_that_others_ask_too_is_refused(
    engines: Engines, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeVllm, "count", lambda self, tokens: self.counts.update(generated=self.counts["generated"] + tokens + 1)
    )
    with pytest.raises(ServerError, match="someone else is asking it"):
        run(target)


def test_the_fastest_length_at_each_load_and_none_where_none_pays() -> None:
    def loads(*speedups: float) -> dict[str, Any]:
        return {"loads": {str(4**i): {"speedup": {"value": s}} for i, s in enumerate(speedups)}}

    found = best_settings({"3": loads(1.5, 1.1, 0.9), "5": loads(1.4, 1.2, 0.7)})
    assert found == {"1": 3, "4": 5, "16": None}


def test_the_method_is_always_said() -> None:
    """vLLM takes a Medusa drafter in a folder called `eagle-...` for an EAGLE otherwise."""
    assert speculative_config("medusa", Path("models/eagle-like"), 2)["method"] == "medusa"
