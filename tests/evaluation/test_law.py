"""The output's law, enumerated exactly: it is the base's for every rule, and every mutant of the rules is caught."""

import dataclasses
from collections.abc import Callable

import pytest

from specdec.decoding import verify
from specdec.drafters import Sampling, StaticTree, sampling
from specdec.evaluation.law import DRAWN, SAMPLINGS, choices_error, draws_error
from tests.evaluation.mutants import mutant

EXACT = 1e-12
Error = Callable[[Sampling], float]


@pytest.mark.parametrize("rule", SAMPLINGS, ids=str)
def test_choices_leave_the_law_as_it_is(rule: Sampling) -> None:
    assert choices_error(rule) < EXACT


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("rule", SAMPLINGS, ids=str)
def test_draws_leave_the_law_as_it_is(rule: Sampling, form: StaticTree, seed: int) -> None:
    assert draws_error(rule, form, seed) < EXACT


def chains(rule: Sampling) -> float:
    return draws_error(rule, DRAWN["chain"])


def siblings(rule: Sampling) -> float:
    return draws_error(rule, DRAWN["two children"])


def trees(rule: Sampling) -> float:
    return draws_error(rule, DRAWN["tree"])


MUTANTS = [
    ("rejection", "uniforms[nodes] < wanted / drawn", "uniforms[nodes] <= wanted / drawn", chains),
    ("rejection", "uniforms[nodes] < wanted / drawn", "uniforms[nodes] < wanted", chains),
    ("rejection", "(left[above] - law).clamp(min=0)", "left[above]", chains),
    ("rejection", "(left[above] - law).clamp(min=0)", "(left[above] - law).abs()", chains),
    ("rejection", "rest / total", "rest", chains),
    ("rejection", " & ~taken[above]", "", trees),
    ("rejection", "parents[nodes] + 1", "parents[nodes].clamp(min=0)", trees),
    ("rejection", "index_copy(0, above, rest)", "index_copy(0, above, left[above])", siblings),
    ("deepest", "~(ancestors & ~kept).any(1)", "kept", trees),
    ("accepted_path", "chosen[:-1]", "chosen[1:]", choices_error),
    ("accepted_path", "chosen[proposal.parents + 1]", "chosen[proposal.parents]", choices_error),
    ("deepest", "kept.int().cumprod(0).bool()", "kept", choices_error),
    ("row_behind", "arange(1, len(path) + 1", "arange(0, len(path)", choices_error),
    ("row_behind", "(rows * path, (1, 0)).amax(0, keepdim=True)", "(path, (1, 0)).sum(0, keepdim=True)", trees),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "error"), MUTANTS, ids=lambda part: getattr(part, "__name__", part)[:40]
)
def test_a_mutant_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str, error: Error) -> None:
    monkeypatch.setattr(verify, name, mutant(getattr(verify, name), right, wrong))
    assert error(Sampling(1.0)) > 1e-6


def test_a_drafter_whose_laws_are_not_what_it_drew_from_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 1 where 0.7 was drawn from, say."""
    from specdec.evaluation import law

    drawn = law._drawn

    def wrong(form: StaticTree, drafter: tuple[sampling.Tensor, ...]):  # type: ignore[no-untyped-def]
        for proposal, probability in drawn(form, drafter):
            flat = proposal.laws.sqrt() / proposal.laws.sqrt().sum(-1, keepdim=True)
            yield dataclasses.replace(proposal, laws=flat), probability

    monkeypatch.setattr(law, "_drawn", wrong)
    assert chains(Sampling(1.0)) > 1e-3
