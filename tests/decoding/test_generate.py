"""Generation: plain equals transformers' own, and no drafter, however wrong, changes a token."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.decoding import generate, steps
from specdec.drafters import DraftState, Draw, Proposal, Shape, Tree
from specdec.drafters.trees import ROOT
from specdec.errors import DataError
from specdec.targets import Target
from tests.decoding.oracle import Oracle

PROMPT = [1, 4, 30, 41, 52, 63, 2, 5]
LIMIT = 40
TREE = Tree(4, 4, 16)


def by_transformers(target: Target, prompt: list[int], limit: int) -> list[int]:
    output = target.model.generate(torch.tensor([prompt]), max_new_tokens=limit, do_sample=False)
    return output[0, len(prompt) :].tolist()


def test_plain_decoding_equals_transformers(target: Target) -> None:
    for prompt in (PROMPT, [1, 4, 100, 2, 5], [1]):
        assert generate(target, None, prompt, LIMIT).token_ids == by_transformers(target, prompt, LIMIT)


@given(
    plan=st.lists(st.none() | st.integers(0, 3), max_size=40),
    length=st.integers(1, 4),
    limit=st.integers(1, LIMIT),
)
@settings(max_examples=60, deadline=None)
def test_any_drafter_leaves_the_output_as_it_is(
    target: Target, plan: list[int | None], length: int, limit: int
) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    oracle = Oracle(truth, plan, length, target.vocab_size)
    made = generate(target, oracle, PROMPT, limit)
    assert made.token_ids == truth[:limit]
    # While the truth is known, exactly what the plan left right is accepted.
    known = [i for i in range(made.steps) if sum(oracle.offered[: i + 1]) + i + 1 + length < len(truth)]
    assert [made.accepted_per_step[i] for i in known] == [oracle.offered[i] for i in known]


class Forest(Oracle):
    """Hides the truth, as far as the plan lets it, in a tree of other tokens."""

    def __init__(self, truth: list[int], plan: list[int | None], length: int, vocab_size: int, seed: int):
        super().__init__(truth, plan, length, vocab_size)
        self.random = random.Random(seed)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        chain = super().propose(state, budget).token_ids.tolist()
        tokens, parents, at = [], [], [ROOT]
        for token in chain:
            others = self.random.sample([t for t in range(self.vocab_size) if t != token], self.random.randint(0, 3))
            level = [token, *others]
            self.random.shuffle(level)
            above = at[-1]
            at.append(len(tokens) + level.index(token))
            tokens += level
            parents += [above] * len(level)
        last = self.random.randrange(len(tokens))  # and a token that only looks right: behind a wrong one
        if last not in at:
            tokens.append(chain[-1])
            parents.append(last)
        return Proposal(torch.tensor(tokens), torch.tensor(parents))


@given(
    plan=st.lists(st.none() | st.integers(0, 3), max_size=40),
    length=st.integers(1, 4),
    limit=st.integers(1, LIMIT),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_tree_leaves_the_output_as_it_is(
    target: Target, plan: list[int | None], length: int, limit: int, seed: int
) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    forest = Forest(truth, plan, length, target.vocab_size, seed)
    made = generate(target, forest, PROMPT, limit, tree=TREE)
    assert made.token_ids == truth[:limit]
    # What is spoilt may be another branch's token by chance; what is right is accepted.
    known = [i for i in range(made.steps) if sum(forest.offered[: i + 1]) + i + 1 + length < len(truth)]
    assert all(made.accepted_per_step[i] >= forest.offered[i] for i in known[:1])


class Listening(Forest):
    """Keeps what it is told of the base's states."""

    aux_layers = (1, 2)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        self.state = state
        return super().propose(state, budget, tree)


def test_the_drafter_hears_of_the_accepted_path_alone(target: Target) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    listening = Listening(truth, [None, 1, None, 0, 2, None], 3, target.vocab_size, 5)
    made = generate(target, listening, PROMPT, 20, tree=TREE).token_ids
    heard = listening.state
    assert heard.token_ids is not None
    assert heard.hidden is not None
    assert heard.auxiliary is not None
    count = len(heard.token_ids)
    assert count >= len(PROMPT) + len(made) - 1
    whole = [*PROMPT, *truth]
    assert heard.token_ids.tolist() == whole[1 : count + 1]
    read = target.forward(torch.tensor([whole[:count]]), layers=listening.aux_layers)
    assert read.auxiliary is not None
    torch.testing.assert_close(heard.hidden, read.hidden[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(heard.auxiliary, read.auxiliary[0], rtol=1e-4, atol=1e-4)


def test_acceptance_length_counts_the_bonus_token(target: Target) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    assert len(truth) == LIMIT, "the fixture's base must not stop early"
    always_right = generate(target, Oracle(truth, [], 3, target.vocab_size), PROMPT, 1 + 4 * 5)
    assert always_right.steps == 5
    assert always_right.acceptance_length == 4.0
    always_wrong = generate(target, Oracle(truth, [0] * 99, 3, target.vocab_size), PROMPT, 20)
    assert always_wrong.acceptance_length == 1.0
    assert generate(target, None, PROMPT, 1).acceptance_length == 1.0


def test_a_chain_is_as_long_as_the_drafter_says(target: Target) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    for length in (1, 2, 4):
        oracle = Oracle(truth, [], 4, target.vocab_size)
        oracle.draft_tokens = length
        made = generate(target, oracle, PROMPT, 1 + 2 * (length + 1))
        assert made.accepted_per_step == [length, length]


@pytest.mark.parametrize("tree", [None, TREE])
def test_the_cache_is_rolled_back_exactly(target: Target, monkeypatch: pytest.MonkeyPatch, tree: Tree | None) -> None:
    caches = []
    new_cache = target.new_cache
    monkeypatch.setattr(target, "new_cache", lambda: caches.append(new_cache()) or caches[-1])
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    plan: list[int | None] = [0, 2, None, 1, 0, None, 2] * 5
    vocabulary = target.vocab_size
    oracle = Forest(truth, plan, 3, vocabulary, 0) if tree else Oracle(truth, plan, 3, vocabulary)
    made = generate(target, oracle, PROMPT, 25, tree=tree).token_ids
    cache = caches[-1]
    kept = cache.get_seq_length()
    context = [*PROMPT, *truth][:kept]
    assert kept >= len(PROMPT) + len(made) - 1
    fresh = new_cache()
    target.forward(torch.tensor([context]), cache=fresh)
    for layer, wanted in zip(cache.layers, fresh.layers, strict=True):
        torch.testing.assert_close(layer.keys, wanted.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, wanted.values, rtol=1e-4, atol=1e-4)


def test_a_cache_that_is_given_is_the_one_that_is_filled(target: Target) -> None:
    cache = target.new_cache()
    made = list(steps(target, None, PROMPT, 5, cache=cache))
    assert cache.get_seq_length() == len(PROMPT) + len(made) - 1


def test_stops_behind_the_stop_token_even_inside_a_draft(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = generate(target, None, PROMPT, LIMIT).token_ids
    stop = truth[6]
    first = truth.index(stop)
    monkeypatch.setattr(target, "stop_ids", frozenset({stop}))
    for length in (1, 2, 3, 4):
        made = generate(target, Oracle(truth, [], length, target.vocab_size), PROMPT, LIMIT)
        assert made.token_ids == truth[: first + 1]


def test_to_the_very_end_of_the_context(target: Target) -> None:
    prompt = [1, 4] + [7 + i % 90 for i in range(target.max_positions - 12)]
    truth = generate(target, None, prompt, 100).token_ids
    assert len(truth) == 10
    for length in (1, 3, 4):
        assert generate(target, Oracle(truth, [], length, target.vocab_size), prompt, 100).token_ids == truth


@pytest.mark.parametrize("prompt", [[], [1] * 300])
def test_prompts_that_do_not_fit(target: Target, prompt: list[int]) -> None:
    with pytest.raises(DataError, match="takes 1 to 255"):
        generate(target, None, prompt, 5)


@pytest.mark.parametrize("token", ["first unknown", -1])
def test_tokens_that_the_base_does_not_know(target: Target, token: Any) -> None:
    token = target.vocab_size if token == "first unknown" else token
    with pytest.raises(DataError, match=f"has the token {token}: {target.name} knows 0 to {target.vocab_size - 1}"):
        generate(target, None, [1, token, 5], 5)
    assert generate(target, None, [1, target.vocab_size - 1, 5], 5).token_ids


def test_streaming_gives_the_same_tokens(target: Target) -> None:
    truth = generate(target, None, PROMPT, 20).token_ids
    streamed = list(steps(target, Oracle(truth, [1] * 9, 3, target.vocab_size), PROMPT, 20))
    assert [t for s in streamed for t in s.token_ids] == truth
    assert streamed[0].drafted == 0
