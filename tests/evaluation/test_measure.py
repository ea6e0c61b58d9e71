"""Measuring: counts as defined, differences found, prompts that do not fit said."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specdec.decoding import generate, verify
from specdec.drafters import Drafter, Sampling, Tree, new_drafter
from specdec.drafters.prompt_lookup import PromptLookup
from specdec.errors import DataError
from specdec.evaluation import Bootstrap, Way, measure, summarize
from specdec.evaluation.measure import (
    EvaluationPrompt,
    PromptMeasurement,
    encode,
    first_difference,
)
from specdec.evaluation.summary import conditional_rates, speed_pair
from specdec.targets import Target
from tests.decoding.oracle import Oracle
from tests.settings import medusa_settings
from tests.tiny import write_base

PLAIN = Way("no drafter")
BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)


def row(text: str, category: str = "c", **more: Any) -> dict[str, Any]:
    return {"id": text, "category": category, "messages": [{"role": "user", "content": text}], **more}


ROWS = [row("add two numbers"), row("what is a list", "d"), row("x", "d")]


@pytest.fixture(scope="module")
def drafter(target: Target) -> Drafter:
    return new_drafter(target, medusa_settings())


@pytest.fixture(scope="module")
def prompts(target: Target) -> list[EvaluationPrompt]:
    return encode(target, ROWS, 12, print)[0]


def test_figures_of_a_real_run(target: Target, drafter: Drafter, prompts: list[EvaluationPrompt]) -> None:
    warm = Sampling(1.0)
    ways = [
        PLAIN,
        Way("chain", drafter, 2),
        Way("short chain", drafter, 1),
        Way("tree", drafter, tree=Tree(2, 2, 5)),
        Way("lookup", PromptLookup()),
        Way("plain, warm", sampling=warm),
        Way("chain, warm", drafter, 2, sampling=warm),
        Way("draws, warm", drafter, 2, sampling=warm, sample_drafts=True),
    ]
    measured = measure(target, ways, prompts, 12, 2, 0, print)
    assert list(measured) == [way.name for way in ways]
    for way in [way for way in ways if way.drafter]:
        found = measured[way.name]
        plain = measured["plain, warm" if way.sampling.temperature else "no drafter"]
        figures = summarize(way, found, plain, BOOTSTRAP)
        assert figures["lossless"] is (None if way.sampling.temperature else True)
        assert figures["prompts"] == 3
        assert figures["temperature"] == way.sampling.temperature
        assert len(figures["position_rates"]) == way.longest
        length = figures["acceptance_length"]["value"]
        assert length == pytest.approx(1 + sum(p.accepted for p in found) / sum(p.steps for p in found))
        assert sum(figures["position_rates"]) == pytest.approx(length - 1)
        assert set(figures["categories"]) == {"c", "d"}
        assert figures["categories"]["c"]["acceptance_length"]["low"] is None
        assert 0 < figures["draft_share"] < 1
        assert 0 < figures["time_to_first_token"]["drafter"] < sum(p.seconds[0] for p in found)
        for prompt in found:
            assert len(prompt.seconds) == len(prompt.first_token_seconds) == len(prompt.draft_seconds) == 2
            assert 0 < prompt.first_token_seconds[0] < prompt.seconds[0]
            assert prompt.prompt_seconds == prompt.first_token_seconds
            assert prompt.accepted <= prompt.drafted
            assert sum(prompt.draft_accepted) <= prompt.accepted
    assert summarize(ways[1], measured["chain"], measured["no drafter"], BOOTSTRAP)["drafted_per_step"] <= 2
    assert max(p.drafted for p in measured["tree"]) > max(p.drafted for p in measured["chain"])
    assert measured["no drafter"][0].draft_seconds == [0.0, 0.0]


def test_a_changed_output_is_found(
    target: Target, drafter: Drafter, prompts: list[EvaluationPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verification that accepts everything must show up as not lossless."""
    monkeypatch.setattr(
        verify, "accepted_path", lambda draft, _chosen: torch.ones(len(draft.token_ids), dtype=torch.bool)
    )
    way = Way("chain", drafter, 2)
    measured = measure(target, [PLAIN, way], prompts, 12, 1, 0, print)
    assert not summarize(way, measured["chain"], measured["no drafter"], BOOTSTRAP)["lossless"]
    differing = [p.first_difference for p in measured["chain"] if p.first_difference is not None]
    assert differing
    assert min(differing) > 0


def test_a_difference_in_a_later_pass_is_found(
    target: Target, drafter: Drafter, prompts: list[EvaluationPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("specdec.evaluation.measure")
    decode, calls = module._decode, []

    def second_pass_errs(target: Target, way: Way, *rest: Any) -> Any:
        timed = decode(target, way, *rest)
        calls.append(way.name)
        if way.drafter and calls.count("chain") == 1 + len(prompts):  # the warm-up, and one pass
            timed.turns[0][1].token_ids[0] += 1
        return timed

    monkeypatch.setattr(module, "_decode", second_pass_errs)
    measured = measure(target, [PLAIN, Way("chain", drafter, 2)], prompts[:1], 12, 2, 0, print)
    assert calls.count("chain") == 3
    assert measured["chain"][0].first_difference is None
    monkeypatch.setattr(module, "WARM_UP_PROMPTS", 0)
    calls[:] = ["chain"] * len(prompts)
    measured = measure(target, [PLAIN, Way("chain", drafter, 2)], prompts[:1], 12, 2, 0, print)
    assert measured["chain"][0].first_difference == 1


def test_counts_are_those_of_the_decoding(target: Target, prompts: list[EvaluationPrompt]) -> None:
    """A drafter that errs by a known plan: what is accepted, where, and which tokens were drafted is known too."""
    truth = generate(target, None, prompts[0].contexts[0], 12).token_ids
    assert len(truth) == 12

    class Again(Oracle):
        """The plan begins anew with every prompt's first draft."""

        def propose(self, state: Any, budget: int, tree: Any = None, draw: Any = None) -> Any:
            if state.token_ids is not None and len(state.token_ids) == len(prompts[0].contexts[0]) > 1:
                self.place, self.step = 1, 0
            made = super().propose(state, budget)
            state.forget()
            return made

    # Three drafts a step, of which 1, 0, 3 and 1 are right, and then all: 1 + 2 + 1 + 4 + 2 + 2 tokens.
    oracle = Again(truth, [1, 0, None, 1], 3, target.vocab_size)
    (found,) = measure(target, [PLAIN, Way("oracle", oracle)], prompts[:1], 12, 2, 0, print)["oracle"]
    assert found.first_difference is None
    right = [1, 0, 3, 1, 2]  # of the last step the limit leaves room for two
    assert found.steps == 5
    assert found.accepted_at == [4, 2, 1]
    marks = [False] + [mark for a in right for mark in [True] * a + [False]]
    assert found.draft_accepted == marks[:12]
    assert found.drafted == 3 * 4 + 2


def test_who_goes_first_changes(
    target: Target, drafter: Drafter, prompts: list[EvaluationPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("specdec.evaluation.measure")
    order: list[str] = []
    decode = module._decode
    monkeypatch.setattr(module, "WARM_UP_PROMPTS", 0)
    monkeypatch.setattr(module, "_decode", lambda t, way, *rest: order.append(way.name) or decode(t, way, *rest))
    measure(target, [PLAIN, Way("a", drafter), Way("b", drafter)], prompts[:2], 4, 2, 0, print)
    first = order[::3]
    assert first == ["no drafter", "a", "a", "b"]
    assert all(sorted(order[i : i + 3]) == ["a", "b", "no drafter"] for i in range(0, 12, 3))


def test_the_turns_of_a_conversation_follow_the_bases_own_answers(target: Target, drafter: Drafter) -> None:
    talk = row("what is a list", further_turns=["and a set?", "why?"])
    (prompt,), skipped = encode(target, [talk], 6, print)
    assert skipped == 0
    assert len(prompt.contexts) == 3
    messages = talk["messages"]
    for context, following in zip(prompt.contexts, [*talk["further_turns"], None], strict=True):
        assert context == target.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        answer = target.tokenizer.decode(generate(target, None, context, 6).token_ids, skip_special_tokens=True)
        messages = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": following}]
    measured = measure(target, [PLAIN, Way("chain", drafter, 2)], [prompt], 6, 1, 0, print)
    alone = [generate(target, drafter, context, 6) for context in prompt.contexts]
    (found,) = measured["chain"]
    assert found.token_ids == [token for made in alone for token in made.token_ids]
    assert found.steps == sum(made.steps for made in alone)
    assert found.accepted == sum(made.accepted for made in alone)
    assert found.first_difference is None
    assert found.first_token_seconds[0] < found.prompt_seconds[0] < found.seconds[0]


def test_a_conversation_ends_in_front_of_what_the_template_refuses(tmp_path: Path) -> None:
    write_base(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    refuse = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(refuse + template)
    target = Target.from_pretrained(tmp_path, device="cpu")
    said: list[str] = []
    found, skipped = encode(target, [row("why"), row("add 2", further_turns=["and 3?"])], 6, said.append)
    assert [len(prompt.contexts) for prompt in found] == [1, 1]
    assert skipped == 0
    assert said[-1] == "1 conversations end in front of a turn that the base's chat template refuses"


def test_prompts_that_do_not_fit_are_counted(target: Target) -> None:
    found, skipped = encode(target, [*ROWS, row("long " * 99), row("a", further_turns=["long " * 99])], 12, print)
    assert [prompt.id for prompt in found] == [r["id"] for r in ROWS]
    assert skipped == 2


@pytest.mark.parametrize("rows", [[], [row("long " * 99)]])
def test_nothing_to_measure(target: Target, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match=f"no prompt to evaluate: {len(rows)} were given, none fits tiny-llama"):
        encode(target, rows, 12, print)


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_conditional_rates() -> None:
    assert conditional_rates([0.5, 0.25, 0.0]) == [0.5, 0.5, 0.0]
    assert conditional_rates([0.0, 0.0]) == [0.0, 0.0]


def entry(tokens: int, seconds: list[float], first: float = 0.0, drafting: float = 0.0) -> PromptMeasurement:
    return PromptMeasurement(
        "i",
        "c",
        1,
        [7] * tokens,
        [False] * tokens,
        tokens - 1,
        1,
        [1],
        [tokens],
        None,
        seconds,
        [first] * len(seconds),
        [first] * len(seconds),
        [drafting],
    )


def test_an_interval_of_the_acceptance_length_ends_where_every_draft_is_accepted() -> None:
    """Two prompts say little; yet of one draft token a step no more than two tokens come."""
    figures = summarize(Way("w"), [entry(2, [1]), entry(9, [1])], [entry(2, [1]), entry(9, [1])], BOOTSTRAP)
    found = figures["acceptance_length"]
    assert (found["value"], found["low"], found["high"]) == (pytest.approx(1 + 2 / 9), 1.0, 2.0)
    assert figures["categories"]["c"]["acceptance_length"] == found


def test_speedup_is_of_all_seconds() -> None:
    plain = [entry(2, [3, 1]), entry(2, [2, 2])]
    figures = summarize(Way("w"), [entry(2, [1, 1]), entry(2, [1, 1])], plain, BOOTSTRAP)
    assert figures["speedup"]["value"] == pytest.approx(2.0)
    assert figures["tokens_per_second"] == {"plain": pytest.approx(1.0), "drafter": pytest.approx(2.0)}


def test_sampled_answers_of_another_length_are_compared_by_the_token() -> None:
    """Plain: 8 tokens, the first after 0.5 s, the others in 0.5 s each. The drafter's 2 tokens would take 1 s."""
    plain = [entry(8, [4.0], first=0.5)]
    figures = summarize(Way("w", sampling=Sampling(1.0)), [entry(2, [0.5])], plain, BOOTSTRAP)
    assert figures["speedup"]["value"] == pytest.approx(2.0)
    assert figures["lossless"] is None


def test_a_plain_step_is_the_prompts_own() -> None:
    """Beside a prompt whose steps are slow: 7 steps of 10 ms, of which the drafter's two tokens lack six."""
    plain = [entry(8, [0.12], first=0.05), entry(2, [5.0], first=1.0)]
    ours = [entry(2, [0.06]), entry(2, [5.0])]
    without, _ = speed_pair(ours, plain)
    assert without == [pytest.approx(0.06), pytest.approx(5.0)]


def test_draft_share_is_of_the_steps_alone() -> None:
    """Of 5 s, 1 s went to the prompt; 1 of the other 4 to drafting."""
    figures = summarize(Way("w"), [entry(2, [5.0], first=1.0, drafting=1.0)], [entry(2, [5.0], first=0.5)], BOOTSTRAP)
    assert figures["draft_share"] == pytest.approx(0.25)
    assert figures["time_to_first_token"] == {"plain": 0.5, "drafter": 1.0}


def test_a_decoder_beside_itself_is_no_faster() -> None:
    """However the sampled answers' lengths fall: 0.05 s for the prompt and 0.02 s a token, both of them."""
    random = np.random.default_rng(0)

    def some() -> list[PromptMeasurement]:
        lengths = 1 + random.geometric(1 / 30, 2000)
        return [entry(int(n), [0.05 + 0.02 * (int(n) - 1)], first=0.05) for n in lengths]

    figures = summarize(Way("w", sampling=Sampling(1.0)), some(), some(), BOOTSTRAP)
    assert figures["speedup"]["value"] == pytest.approx(1.0, abs=1e-6)
