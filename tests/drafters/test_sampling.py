"""How tokens are chosen: the law, and draws without replacement that know what they were drawn from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specdec.drafters import Draw, Sampling
from specdec.drafters.sampling import nucleus, pick, successive_laws
from specdec.errors import ConfigError
from specdec.evaluation.plain_law import plain_law


@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1, exclude_min=True),
)
@settings(max_examples=80, deadline=None)
def test_the_law_is_that_of_transformers(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(found, wanted.softmax(-1), rtol=1e-9, atol=1e-12)


def test_what_ties_with_the_last_of_top_k_stays() -> None:
    """As in transformers; logits in half precision tie often."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    wanted = TopKLogitsWarper(2)(None, logits).softmax(-1)
    assert (wanted > 0).sum() == 4
    torch.testing.assert_close(Sampling(1.0, top_k=2).probabilities(logits), wanted)
    law, tokens = plain_law(logits, Sampling(1.0, top_k=2))
    torch.testing.assert_close(torch.zeros_like(wanted).scatter(-1, tokens, law), wanted)


def test_no_temperature_is_too_low() -> None:
    logits = torch.tensor([[30.0, -20.0, 29.0]])
    for least in (Sampling(1e-38), Sampling(1e-46), Sampling(1.0, top_p=1e-46)):
        assert torch.equal(least.probabilities(logits), torch.tensor([[1.0, 0.0, 0.0]]))


def test_nucleus_keeps_the_smallest_set() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert nucleus(probabilities, 0.5)[0].tolist() == [0, 1, 0, 0]
    assert nucleus(probabilities, 0.6)[0].tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert nucleus(probabilities, 1.0)[0].tolist() == pytest.approx(probabilities[0].tolist())


def test_greedy_is_all_on_one_token() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert Sampling().probabilities(logits).tolist() == [[0, 1, 0, 0]]
    assert Sampling().greedy
    assert not Sampling(0.1).greedy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature": -1}, "temperature is -1, and must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -2}, "top_k is -2, and must be 0"),
        ({"top_p": 0}, "top_p is 0, and must be above 0, and 1 at most"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_impossible_sampling(changes: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Sampling(**changes)  # type: ignore[arg-type]


def test_draws_come_in_the_order_of_drawing_one_behind_the_other() -> None:
    """The frequency of each ordered pair is its probability without replacement: p(a) p(b) / (1 - p(a))."""
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 40_000
    draw = Draw(Sampling(1.0), torch.Generator().manual_seed(0))
    said = pick(law.log().expand(count, -1), 2, draw)
    for a in range(4):
        for b in range(4):
            wanted = 0.0 if a == b else float(law[a] * law[b] / (1 - law[a]))
            share = ((said.tokens[:, 0] == a) & (said.tokens[:, 1] == b)).float().mean().item()
            assert share == pytest.approx(wanted, abs=4 * (0.25 / count) ** 0.5)
    assert said.laws is not None
    torch.testing.assert_close(said.laws[:, 0], law.expand(count, -1))
    torch.testing.assert_close(said.laws[:, 1].gather(1, said.tokens[:, :1]), torch.zeros(count, 1))
    torch.testing.assert_close(said.laws.sum(-1), torch.ones(count, 2))
    torch.testing.assert_close(said.scores.exp(), law[said.tokens])


def test_where_nothing_is_left_the_law_is_zero() -> None:
    """top_k 1 and two draws: the second token is none that the drafter would ever say."""
    said = pick(torch.tensor([[0.0, 2.0, 1.0]]), 2, Draw(Sampling(1.0, top_k=1)))
    assert said.tokens[0, 0] == 1
    assert said.laws is not None
    assert said.laws[0].tolist() == [[0, 1, 0], [0, 0, 0]]


def test_successive_laws() -> None:
    laws = successive_laws(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1, 0, 2]]))
    wanted = torch.tensor([[[0.5, 0.3, 0.2], [5 / 7, 0, 2 / 7], [0, 0, 1]]])
    torch.testing.assert_close(laws, wanted)
