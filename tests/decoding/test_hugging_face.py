"""Behind transformers' own `generate`: the same text, what was asked for kept or refused by name."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import TextStreamer
from transformers.generation import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from specdec.decoding import custom_generate
from specdec.drafters import Drafter, StaticTree, Tree, new_drafter
from specdec.errors import ConfigError
from specdec.targets import Target
from tests.settings import eagle3_settings, medusa_settings

PROMPT = torch.tensor([[1, 4, 40, 41, 42, 2, 5]])
STATIC = StaticTree.of([(0,), (1,), (0, 0)])


@pytest.fixture(params=[medusa_settings, eagle3_settings], ids=["medusa", "eagle3"])
def drafter(target: Target, request: pytest.FixtureRequest) -> Drafter:
    return new_drafter(target, request.param()).eval()


def generated(target: Target, **choices: Any) -> list[int]:
    given: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, **choices}
    return target.model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **given)[0].tolist()


@pytest.mark.parametrize("tree", [None, Tree(2, 2, 5), STATIC], ids=["chain", "tree", "static"])
def test_the_same_text(target: Target, drafter: Drafter, tree: Any) -> None:
    plain = generated(target)
    assert generated(target, custom_generate=custom_generate(drafter, tree=tree)) == plain
    assert len(plain) == PROMPT.shape[1] + 24
    ends = {"eos_token_id": plain[12]}
    assert generated(target, custom_generate=custom_generate(drafter, tree=tree), **ends) == generated(target, **ends)
    longest = {"max_length": 15, "max_new_tokens": None}
    ours = generated(target, custom_generate=custom_generate(drafter, tree=tree), **longest)
    assert ours == generated(target, **longest) == plain[:15]


def test_it_stops_where_a_criterion_says(target: Target, drafter: Drafter) -> None:
    plain = generated(target)

    class After(StoppingCriteria):
        """Behind these two tokens."""

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return (input_ids[:, -2:] == torch.tensor(plain[14:16])).all(-1)

    for own in (MaxLengthCriteria(12), EosTokenCriteria(plain[12])):
        few = StoppingCriteriaList([own])
        wanted = generated(target, stopping_criteria=few)
        assert len(wanted) < len(plain)
        assert generated(target, stopping_criteria=few, custom_generate=custom_generate(drafter)) == wanted
    criteria = StoppingCriteriaList([After()])
    wanted = generated(target, stopping_criteria=criteria)
    assert len(wanted) < len(plain)
    assert generated(target, stopping_criteria=criteria, custom_generate=custom_generate(drafter)) == wanted


def test_it_stops_at_a_string(target: Target, drafter: Drafter) -> None:
    plain = generated(target)
    text = target.tokenizer.decode(plain[PROMPT.shape[1] :])
    last = next(letter for letter in text[4:] if letter.isascii() and letter.isprintable())
    wanted = generated(target, stop_strings=[last], tokenizer=target.tokenizer)
    assert len(wanted) < len(plain)
    criteria = StoppingCriteriaList([StopStringCriteria(target.tokenizer, [last])])
    assert generated(target, stopping_criteria=criteria, custom_generate=custom_generate(drafter)) == wanted


def test_it_streams(target: Target, drafter: Drafter, capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(target.tokenizer, skip_prompt=True)
    made = generated(target, custom_generate=custom_generate(drafter, streamer=streamer))
    assert capsys.readouterr().out.rstrip("\n") == target.tokenizer.decode(made[PROMPT.shape[1] :]).rstrip("\n")


@pytest.mark.parametrize("sample_drafts", [False, True])
def test_it_samples_as_asked(target: Target, sample_drafts: bool) -> None:
    """The second token's law, given the most frequent first one, is that of transformers' own settings."""
    drafter = new_drafter(target, medusa_settings()).eval()
    decode = custom_generate(drafter, sample_drafts=sample_drafts)
    torch.manual_seed(0)
    choices = {"do_sample": True, "temperature": 1.5, "top_k": 4, "max_new_tokens": 2}
    made = [generated(target, custom_generate=decode, **choices)[-2:] for _ in range(600)]
    firsts = [first for first, _ in made]
    often = max(set(firsts), key=firsts.count)
    seen = [second for first, second in made if first == often]
    logits = target.model(torch.cat([PROMPT, torch.tensor([[often]])], 1)).logits[0, -1]
    best = logits.topk(4)
    law = (best.values.double() / 1.5).softmax(-1)
    assert set(seen) <= set(best.indices.tolist())
    counts = [seen.count(token) for token in best.indices.tolist()]
    assert chisquare(counts, (law * len(seen)).tolist()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"repetition_penalty": 1.2}, "the logits processor RepetitionPenaltyLogitsProcessor"),
        ({"do_sample": True, "min_p": 0.1}, "the logits processor MinPLogitsWarper"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"inputs_embeds": torch.zeros(1, 7, 64)}, "inputs_embeds"),
        (
            {
                "do_sample": True,
                "logits_processor": LogitsProcessorList([TopPLogitsWarper(0.5, min_tokens_to_keep=3)]),
            },
            "min_tokens_to_keep of top_p",
        ),
    ],
)
def test_what_it_cannot_keep_to_is_refused(target: Target, choices: dict[str, Any], told: str) -> None:
    drafter = new_drafter(target, medusa_settings())
    with pytest.raises(ConfigError, match=f"custom_generate cannot keep to {told}"):
        generated(target, custom_generate=custom_generate(drafter), **choices)


@pytest.mark.parametrize(
    "processors",
    [
        [TopPLogitsWarper(0.5), TemperatureLogitsWarper(5.0)],
        [TemperatureLogitsWarper(9.0), TemperatureLogitsWarper(0.1)],
    ],
)
def test_samplers_in_another_order_or_twice_are_refused(target: Target, processors: list[Any]) -> None:
    decode = custom_generate(new_drafter(target, medusa_settings()))
    given = {"do_sample": True, "logits_processor": LogitsProcessorList(processors)}
    with pytest.raises(ConfigError, match="one each of temperature, top_k and top_p, in this order"):
        generated(target, custom_generate=decode, **given)


def test_positions_of_ones_own_are_refused(target: Target) -> None:
    decode = custom_generate(new_drafter(target, medusa_settings()))
    with pytest.raises(ConfigError, match="counts positions from 0: leave position_ids out"):
        generated(target, custom_generate=decode, position_ids=torch.arange(5, 12)[None])


def test_one_sequence_without_padding(target: Target) -> None:
    decode = custom_generate(new_drafter(target, medusa_settings()))
    with pytest.raises(ConfigError, match="takes one sequence, and got 2"):
        target.model.generate(PROMPT.repeat(2, 1), custom_generate=decode, max_new_tokens=3)
    mask = torch.ones_like(PROMPT)
    mask[0, 0] = 0
    with pytest.raises(ConfigError, match="takes no padding"):
        target.model.generate(PROMPT, attention_mask=mask, custom_generate=decode, max_new_tokens=3)


def test_another_model(target: Target, base_folder: Any) -> None:
    other = Target.from_pretrained(base_folder, device="cpu")
    decode = custom_generate(new_drafter(target, medusa_settings()))
    with pytest.raises(ConfigError, match="loaded for another model"):
        other.model.generate(PROMPT, custom_generate=decode, max_new_tokens=3)
