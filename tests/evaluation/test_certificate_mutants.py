"""Decoding with one thing wrong gets no certificate; what makes it slower only, does."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from specdec.decoding import verify
from specdec.decoding.verify import Verifier
from specdec.drafters import Proposal, Sampling, draft_model, medusa, sampling, unrolled
from specdec.drafters.trees import PlacedTree
from specdec.evaluation import certify, law
from specdec.evaluation.cache_check import check_cache
from specdec.evaluation.check import SHAPES, Check, Subject
from specdec.evaluation.greedy_check import check_greedy
from specdec.evaluation.law_check import check_choices, check_draws, check_token
from specdec.evaluation.sampling_check import WAYS, check_sampling
from specdec.targets import Target
from tests.drafters.test_trees import moved
from tests.evaluation.certified import LIMIT, prompts, subject
from tests.evaluation.mutants import mutant

generation = sys.modules["specdec.decoding.generate"]  # `specdec.decoding.generate` is the function


@dataclass(frozen=True)
class Mutant:
    """caught: names of checks that must fail. others: modules that have imported the function by name. tokens: that
    sampling needs to show it."""

    owner: Any
    name: str
    right: str
    wrong: str
    caught: tuple[str, ...]
    others: tuple[Any, ...] = ()
    tokens: int = 1000

    def __str__(self) -> str:
        return f"{self.name}: {self.wrong}"

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = mutant(getattr(self.owner, self.name), self.right, self.wrong)
        for owner in (self.owner, *self.others):
            monkeypatch.setattr(owner, self.name, wrong)


CROP = "target.crop(cache, context + 1 + accepted)"
TREES = ("greedy, dynamic tree", "greedy, static tree")
TREE_CACHES = ("cache, dynamic tree", "cache, static tree")
SAMPLED = ("sampling, chain, choices", "sampling, chain, draws")
MUTANTS = [
    Mutant(verify, "rejection", "uniforms[nodes] < wanted", "uniforms[nodes] <= wanted", ("law of draws",)),
    Mutant(verify, "rejection", "(left[above] - law).clamp(min=0)", "left[above]", ("law of draws",)),
    Mutant(verify, "accepted_path", "chosen[:-1]", "chosen[1:]", ("law of choices", "greedy, chain")),
    Mutant(verify, "accepted_path", "chosen[proposal.parents + 1]", "chosen[proposal.parents]", TREES),
    Mutant(Proposal, "ancestors", "range(count.bit_length())", "range(1)", TREES),
    Mutant(Proposal, "ancestors", "self.parents[:, None] ==", "self.parents[:, None] - 1 ==", TREES),
    Mutant(generation, "_verify", "(1, 0, 1, 0)", "(0, 1, 0, 1)", TREES),
    Mutant(generation, "_verify", "sees[:, 0] = True", "sees[:, 0] |= False", TREES),
    Mutant(Target, "forward_tree", "context + sees.sum(1) - 1", "context + torch.arange(count)", TREES),
    Mutant(Target, "keep", "rows[:, :, start + places]", "rows[:, :, start:stop]", TREE_CACHES),
    Mutant(Target, "keep", "rows[:, :, start + places]", "rows[:, :, start - 1 + places]", TREE_CACHES),
    Mutant(generation, "_run", CROP, "pass", ("cache, chain", "greedy, chain")),
    Mutant(generation, "_run", CROP, f"{CROP[:-1]} + (accepted < len(draft.token_ids)))", ("cache, chain",)),
    Mutant(sampling, "nucleus", ">= top_p", "> top_p", ("law of a token",)),
    Mutant(Sampling, "probabilities", "logits / temperature", "logits", ("law of a token",)),
    Mutant(Verifier, "choose", "self.sampling.probabilities(logits)", "logits.softmax(-1)", SAMPLED[:1], (), 600),
    Mutant(
        Verifier,
        "__call__",
        "self._draw_behind(path, left)",
        "self._draw_behind(path, self.sampling.probabilities(logits))",
        SAMPLED[1:],
        tokens=2400,
    ),
    Mutant(
        sampling,
        "pick",
        "successive_laws(law, tokens)",
        "successive_laws((logits.float() / 2).softmax(-1), tokens)",
        SAMPLED[1:],
        (draft_model, medusa, unrolled),
    ),
]  # fmt: skip
SLOWER = [
    Mutant(PlacedTree, "grow", "level.above", "level.parents", ()),
    Mutant(generation, "_run", "[0, *(place + 1 for place in verdict.places)]", "[*range(accepted + 1)]", ()),
    Mutant(generation, "_run", "token_ids, read.hidden", "token_ids.flip(0), read.hidden", ()),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def real(target: Target) -> Subject:
    """Made before anything is spoilt; the base has shown that it keeps to the masks of trees."""
    return subject(target, moved(target, "eagle"))


@pytest.fixture(scope="module")
def given(real: Subject) -> Subject:
    """The drafter near the base in the other's place too: twice as much to see in the same time."""
    near: Any = real.near
    return dataclasses.replace(real, drafter=near)


def check_of(given: Subject, name: str, monkeypatch: pytest.MonkeyPatch, tokens: int = 0) -> Check:
    """That one alone, the rest takes its time."""
    monkeypatch.setattr(law, "SAMPLINGS", (Sampling(1.0, top_k=2),))
    laws: dict[str, Callable[[], Check]] = {
        "law of a token": check_token,
        "law of choices": check_choices,
        "law of draws": check_draws,
    }
    if name in laws:
        return laws[name]()
    kind, what = name.split(", ", 1)
    if kind == "sampling":
        found = check_sampling(given, tokens, tuple(way for way in WAYS if str(way) == what))
    else:
        given = dataclasses.replace(given, shapes={what: SHAPES[what]})
        found = {"greedy": check_greedy, "cache": check_cache}[kind](given)
    (check,) = found
    assert check.name == name
    return check


@pytest.mark.parametrize("wrong", MUTANTS, ids=str)
def test_a_mutant_is_caught(given: Subject, monkeypatch: pytest.MonkeyPatch, wrong: Mutant) -> None:
    wrong.put_in(monkeypatch)
    for name in wrong.caught:
        found = check_of(given, name, monkeypatch, wrong.tokens)
        assert not found.passed, found.told


@pytest.mark.parametrize("wrong", SLOWER, ids=str)
def test_what_is_slower_only_is_lossless(real: Subject, monkeypatch: pytest.MonkeyPatch, wrong: Mutant) -> None:
    wrong.put_in(monkeypatch)
    for name in (*TREES, *TREE_CACHES):
        check = check_of(real, name, monkeypatch)
        assert check.passed, check.told


def test_a_base_with_wrong_tree_positions_is_not_used_for_trees(
    base_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has not been looked at yet, the base's own check says so: chains only."""
    fresh = Target.from_pretrained(base_folder, device="cpu")
    next(one for one in MUTANTS if one.name == "forward_tree").put_in(monkeypatch)
    assert list(subject(fresh).shapes) == ["chain"]


@pytest.mark.soak
@pytest.mark.parametrize("wrong", SLOWER, ids=str)
def test_the_whole_certificate_of_what_is_slower_only(
    real: Subject, target: Target, monkeypatch: pytest.MonkeyPatch, wrong: Mutant
) -> None:
    wrong.put_in(monkeypatch)
    monkeypatch.setattr(law, "SAMPLINGS", (Sampling(1.0, top_k=2),))
    made = certify(target, real.drafter, prompts(target), max_new_tokens=LIMIT, tokens=1200, say=print)
    assert made.passed, made.as_text()
