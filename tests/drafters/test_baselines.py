"""Drafters that need no training: prompt lookup and a small model, as lossless as the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.decoding import generate
from specdec.drafters import DraftState, Proposal, Sampling, StaticTree, Tree
from specdec.drafters.draft_model import DraftModel
from specdec.drafters.prompt_lookup import PromptLookup
from specdec.errors import ConfigError, ModelError
from specdec.targets import Target
from tests.tiny import write_base

LOOKUP = PromptLookup(4)
PROMPT = [1, 4, *range(40, 60), 2, 5, *range(40, 48)]
FORMS = {
    "chain": None,
    "tree": Tree(3, 2, 99),
    "static": StaticTree.of([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Of the same vocabulary, and of another mind."""
    folder = tmp_path_factory.mktemp("small") / "smaller"
    write_base(folder, seed=1, num_hidden_layers=1)
    return Target.from_pretrained(folder, device="cpu")


def looked_up(context: list[int], budget: int = 4, lookup: PromptLookup = LOOKUP) -> list[int]:
    """What is proposed behind `context`, all of which is observed at once."""
    state = DraftState(start=context[0])
    state.observe(torch.tensor(context[1:]), torch.zeros(len(context) - 1, 2), None)
    return lookup.propose(state, budget).token_ids.tolist()


def test_what_followed_the_longest_known_end() -> None:
    assert looked_up([7, 1, 2, 3, 4, 5, 6, 1, 2]) == [3, 4, 5, 6]
    assert looked_up([7, 1, 2, 3, 4, 5, 6, 1, 2], budget=2) == [3, 4]
    assert looked_up([9, 2, 8, 1, 2, 3, 4, 1, 2]) == [3, 4, 1, 2], "two tokens before one"
    assert looked_up([1, 2, 3, 1, 2, 4, 1, 2]) == [4, 1, 2], "the latest of equals; what follows may be short"
    assert looked_up([7, 7]) == [7], "its first token stands behind no state, and is known"
    assert looked_up([1, 2, 3]) == []


@given(tokens=st.lists(st.integers(0, 3), min_size=2, max_size=40), cut=st.integers(1, 38))
@settings(max_examples=60, deadline=None)
def test_observed_in_pieces_it_is_the_same(tokens: list[int], cut: int) -> None:
    cut = min(cut, len(tokens) - 1)
    lookup, state = PromptLookup(4), DraftState(start=tokens[0])
    if cut > 1:
        state.observe(torch.tensor(tokens[1:cut]), torch.zeros(cut - 1, 2), None)
        lookup.propose(state, 9)
    state.observe(torch.tensor(tokens[cut:]), torch.zeros(len(tokens) - cut, 2), None)
    assert lookup.propose(state, 4).token_ids.tolist() == looked_up(tokens)


def test_prompt_lookup_is_lossless_and_accepted(target: Target) -> None:
    prompt = PROMPT + generate(target, None, PROMPT, 40).token_ids
    truth = generate(target, None, prompt, 60).token_ids
    made = generate(target, PromptLookup(), prompt, 60)
    assert made.token_ids == truth


def test_it_copies_what_repeats(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that says the same four tokens over and over is drafted whole."""
    cycle = torch.arange(target.vocab_size)
    cycle[[10, 11, 12, 13]] = torch.tensor([11, 12, 13, 10])
    monkeypatch.setattr(target, "logits", lambda hidden: hidden)

    class Read:
        auxiliary = None

        def __init__(self, ids: torch.Tensor):
            self.hidden = torch.nn.functional.one_hot(cycle[ids], target.vocab_size).float()

    monkeypatch.setattr(target, "forward", lambda ids, cache=None, layers=(): Read(ids))
    monkeypatch.setattr(target, "crop", lambda cache, length: None)
    made = generate(target, PromptLookup(3), [10, 11, 12, 13, 10, 11], 9)
    assert made.token_ids == [12, 13, 10, 11, 12, 13, 10, 11, 12]
    assert made.accepted_per_step == [3, 3]


def test_prompt_lookup_grows_no_tree(target: Target) -> None:
    with pytest.raises(ConfigError, match="prompt lookup proposes a chain"):
        generate(target, PromptLookup(), PROMPT, 5, tree=Tree(2, 2, 4))


@pytest.mark.parametrize("form", FORMS)
def test_a_small_model_is_lossless(target: Target, other: Target, form: str) -> None:
    truth = generate(target, None, PROMPT, 40).token_ids
    made = generate(target, DraftModel.for_base(other, target), PROMPT, 40, tree=FORMS[form])
    assert made.token_ids == truth


@pytest.mark.parametrize("form", FORMS)
def test_the_base_as_its_own_draft_model_is_always_right(target: Target, form: str) -> None:
    """So its cache holds the context, and nothing of an earlier draft, in every step."""
    made = generate(target, DraftModel.for_base(target, target), PROMPT, 1 + 4 * 6, tree=FORMS[form])
    assert made.accepted_per_step == [3] * 6


@pytest.mark.parametrize("form", ["chain", "static"])
def test_drawn_by_the_base_itself_drafts_are_always_kept(target: Target, form: str) -> None:
    """p = q: speculative sampling refuses nothing."""
    made = generate(
        target,
        DraftModel.for_base(target, target),
        PROMPT,
        1 + 4 * 6,
        Sampling(1.0, top_k=20),
        seed=3,
        tree=FORMS[form],
        sample_drafts=True,
    )
    assert made.accepted_per_step == [3] * 6 if form == "chain" else all(a >= 1 for a in made.accepted_per_step)


def test_a_tree_is_what_its_paths_are_one_by_one(target: Target, other: Target) -> None:
    def proposed(context: list[int], budget: int, tree: StaticTree | None) -> Proposal:
        state = DraftState(start=context[0])
        state.observe(torch.tensor(context[1:]), torch.zeros(len(context) - 1, 2), None)
        with torch.inference_mode():
            return DraftModel(other).propose(state, budget, tree)

    tree = StaticTree.of([(0,), (1,), (0, 0), (1, 0), (0, 1), (0, 0, 0), (1, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0)])
    made = proposed(PROMPT, 9, tree).token_ids.tolist()
    at = dict(zip(tree.paths, made, strict=True))
    for path in [path for path in tree.paths if len(path) > 1 and path[-1] == 0]:
        above = [at[path[:i]] for i in range(1, len(path))]
        assert at[path] == proposed(PROMPT + above, 1, None).token_ids.tolist()[0]


def test_each_node_sees_its_own_path_alone(other: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [(0,), (1,), (0, 0), (1, 0), (0, 0, 0), (1, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0)]
    read: list[list[list[int]]] = []
    forward_tree = other.forward_tree

    def listening(ids: torch.Tensor, sees: torch.Tensor, cache: Any) -> Any:
        read.append([ids[0, row].tolist() for row in sees])
        return forward_tree(ids, sees, cache)

    monkeypatch.setattr(other, "forward_tree", listening)
    state = DraftState(start=PROMPT[0])
    state.observe(torch.tensor(PROMPT[1:]), torch.zeros(len(PROMPT) - 1, 2), None)
    with torch.inference_mode():
        tokens = DraftModel(other).propose(state, 9, StaticTree.of(paths)).token_ids.tolist()
    at = dict(zip(paths, tokens, strict=True))
    ways = [[at[path[:i]] for i in range(1, len(path) + 1)] for path in paths]
    assert read == [ways[:2], ways[:4], ways[:6]]


def test_a_small_model_of_another_tokenizer(target: Target, tmp_path: Path) -> None:
    write_base(tmp_path / "wide", vocab_size=300)
    with pytest.raises(ModelError, match=r"wide \(300 tokens\) has another tokenizer than tiny-llama \(262\)"):
        DraftModel.for_base(Target.from_pretrained(tmp_path / "wide", device="cpu"), target)
    write_base(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(ModelError, match="short takes 64 positions and tiny-llama 256"):
        DraftModel.for_base(Target.from_pretrained(tmp_path / "short", device="cpu"), target)


def test_prompt_lookup_where_the_base_samples(target: Target) -> None:
    """It cannot draw: what it has is verified as choices."""
    prompt = PROMPT + generate(target, None, PROMPT, 40).token_ids
    made = [generate(target, PromptLookup(), prompt, 30, Sampling(0.7), seed=s).token_ids for s in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
