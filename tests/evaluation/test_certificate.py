"""The certificate passes for every method, tells what it saw, and is not given without a showing."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from specdec.drafters import Drafter, DraftState, Draw, Proposal, Sampling, Shape, new_drafter
from specdec.errors import ConfigError, DataError, ModelError
from specdec.evaluation import Certificate, certify, law
from specdec.evaluation.cache_check import check_cache
from specdec.evaluation.check import Check
from specdec.evaluation.greedy_check import check_deployment, readings
from specdec.evaluation.plain_law import impossible, plain_law
from specdec.evaluation.sampling_check import WAYS, Answer, _check, check_sampling, transformed, uniformity
from specdec.targets import Target
from tests.drafters.test_families import SETTINGS
from tests.drafters.test_trees import moved
from tests.evaluation.certified import LIMIT, prompts, subject
from tests.targets.families import FAMILIES, write_family
from tests.tiny import write_base

METHODS = ("medusa", "eagle", "eagle3")
RULE = Sampling(0.7, top_k=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two only wait for each other where models are this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six, which tests/evaluation/test_law.py goes through."""
    monkeypatch.setattr(law, "SAMPLINGS", (RULE,))


@pytest.fixture(scope="module")
def rounded(base_folder: Path) -> Target:
    return Target.from_pretrained(base_folder, dtype="bfloat16", device="cpu")


def nothing(_line: str) -> None:
    pass


@pytest.mark.usefixtures("one_rule")
@pytest.mark.parametrize("method", METHODS)
def test_it_passes_for_every_method(target: Target, rounded: Target, method: str) -> None:
    deployed = rounded, moved(rounded, method).to(torch.bfloat16)
    heard: list[str] = []
    made = certify(
        target, moved(target, method), prompts(target, 2), deployment=deployed, max_new_tokens=LIMIT, tokens=220,
        say=heard.append,
    )  # fmt: skip
    assert made.passed, made.as_text()
    names = [check.name for check in made.checks]
    assert [name for name in names if "tree" in name] == [
        "greedy, dynamic tree",
        "greedy, static tree",
        "sampling, static tree, draws",
        "sampling, dynamic tree, choices",
        "cache, dynamic tree",
        "cache, static tree",
        "bfloat16, dynamic tree",
        "bfloat16, static tree",
    ]
    assert len(heard) == len(names) == 16
    written = json.loads(json.dumps(made.as_dict()))
    assert written["passed"] is True
    assert written["drafter"]["method"] == method
    assert written["base"]["weights"] == target.identity.weights
    assert (written["dtype"], written["deployment"]) == ("float32", "bfloat16")
    text = made.as_text()
    assert text.startswith("Losslessness certificate: PASSED\n")
    assert all(f"passed  {name} " in text for name in names)
    assert max(map(len, text.splitlines())) <= 118
    assert len(text.splitlines()) <= 45


def test_one_failed_check_is_no_certificate(target: Target) -> None:
    checks = [Check("a", True, "fine"), Check("b", False, "not so")]
    about = {"base": {"name": "x", "weights": "y"}, "drafter": {"method": "m", "draft_tokens": 1}}
    about |= dict.fromkeys(
        ("dtype", "device", "deployment", "drafts", "prompts", "skipped", "max_new_tokens", "seed")
    )
    made = Certificate(checks, about)
    assert not made.passed
    assert made.as_text().startswith("Losslessness certificate: NOT PASSED")
    assert "FAILED  b " in made.as_text()
    assert not Certificate([], about).passed


def test_the_verdict_is_reproducible(target: Target) -> None:
    one, other = (list(check_sampling(subject(target), 300, WAYS[1:2])) for _ in range(2))
    assert one == other


# ---------------------------------------------------------------- what is refused


def test_without_prompts_there_is_nothing_to_certify(target: Target) -> None:
    for given in ([], [[]], [[7] * target.max_positions]):
        with pytest.raises(DataError, match=rf"no prompt to certify with: {len(given)} were given, none fits"):
            certify(target, moved(target, "medusa"), given, say=nothing)


def test_the_base_itself_is_compared_in_float32(rounded: Target) -> None:
    with pytest.raises(ConfigError, match="load it in float32"):
        certify(rounded, moved(rounded, "medusa"), prompts(rounded), say=nothing)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, target: Target, number: float) -> None:
    drafter = moved(target, "eagle")
    with torch.no_grad():
        drafter.fc.weight[3, 3] = number
    with pytest.raises(ModelError, match=r"the eagle drafter in float32 has NaN or infinite numbers in fc\.weight"):
        certify(target, drafter, prompts(target), say=nothing)
    write_base(tmp_path / "base")
    base = Target.from_pretrained(tmp_path / "base", device="cpu")
    base.output_weight[200, 0] = number
    with pytest.raises(ModelError, match=r"the base base in float32 has NaN or infinite numbers in lm_head\.weight"):
        certify(base, moved(base, "eagle"), prompts(base), say=nothing)


def test_numbers_that_overflow_are_named(tmp_path: Path, target: Target) -> None:
    drafter = moved(target, "medusa")
    with torch.no_grad():
        drafter.output_weights[0].mul_(1e38)
    with pytest.raises(ModelError, match="the medusa drafter in float32 says NaN or infinite logits behind prompt 1"):
        certify(target, drafter, prompts(target), say=nothing)
    write_base(tmp_path / "base")
    base = Target.from_pretrained(tmp_path / "base", device="cpu")
    base.output_weight.mul_(1e38)
    with pytest.raises(ModelError, match="the base base in float32 says NaN or infinite logits for prompt 1"):
        certify(base, moved(target, "medusa"), prompts(base), say=nothing)


# ---------------------------------------------------------------- what cannot be shown


@pytest.mark.usefixtures("one_rule")
def test_a_base_that_verifies_no_trees_is_certified_for_chains(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Target) -> None:
        raise ModelError("it does not keep to masks")

    monkeypatch.setattr(Target, "check_trees", refuse)
    made = certify(target, moved(target, "eagle"), prompts(target, 2), max_new_tokens=LIMIT, tokens=220, say=nothing)
    assert made.passed, made.as_text()
    assert made.as_dict()["drafts"] == "chains only: it does not keep to masks"
    assert not any("tree" in check.name for check in made.checks)
    assert sum("chain" in check.name for check in made.checks) == 4


class Silent(Drafter):
    """Proposes nothing."""

    draft_tokens = 1

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def propose(
        self, state: DraftState, budget: int, tree: Shape | None = None, draw: Draw | None = None
    ) -> Proposal:
        return Proposal(torch.empty(0, dtype=torch.long))


Silent.__abstractmethods__ = frozenset()


def test_no_refused_draft_is_no_showing(target: Target) -> None:
    silent: Any = Silent()
    chain = {"chain": None}
    given = dataclasses.replace(subject(target), drafter=silent, near=silent, shapes=chain)
    (check,) = check_cache(given)
    assert not check.passed
    assert check.told.startswith("not shown: no step accepted one draft and refused another")


def test_too_few_tokens_are_no_showing(target: Target) -> None:
    for check in check_sampling(subject(target), 40, WAYS[:1]):
        assert not check.passed
        assert check.told.startswith("not shown: no position of a step has 50 of the ")


# ---------------------------------------------------------------- the transform


def test_the_p_value_is_scipy_s() -> None:
    random = torch.Generator().manual_seed(0)
    for power in (1.0, 1.2):
        values = torch.rand(500, dtype=torch.float64, generator=random) ** power
        counts = torch.histc(values, 10, 0, 1).numpy()
        wanted = scipy.stats.chisquare(counts)
        found = uniformity(values)
        assert found["chi_square"] == pytest.approx(wanted.statistic)
        assert found["p_value"] == pytest.approx(wanted.pvalue)


def test_p_values_of_uniform_numbers_are_uniform() -> None:
    random = torch.Generator().manual_seed(0)
    found = [uniformity(torch.rand(200, dtype=torch.float64, generator=random))["p_value"] for _ in range(400)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


def test_the_transform_is_written_out(target: Target) -> None:
    """One token after another, by hand."""
    sampling = Sampling(0.8, top_k=20, top_p=0.9)
    answers = [Answer([1, 30, 41, 52, 60], [-1, 0, 1]), Answer([1, 4, 7, 7, 8, 9, 10], [-1, 0, 0])]
    found, outside = transformed(target, answers, sampling, torch.Generator().manual_seed(3))
    v = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).tolist()
    wanted: dict[int, list[float]] = {}
    missing = 0
    for number, answer in enumerate(answers):
        start = len(answer.token_ids) - 3
        for i, place in enumerate(answer.places):
            logits = target.model(torch.tensor([answer.token_ids[: start + i]])).logits[:, -1].double()
            law = sampling.probabilities(logits)[0]
            token = answer.token_ids[start + i]
            missing += float(law[token]) == 0
            in_front = float(law[law > law[token]].sum())
            wanted.setdefault(place, []).append(in_front + v[3 * number + i] * float(law[token]))
    assert outside == missing > 0
    assert found.keys() == {0, 1}
    for place, values in found.items():
        torch.testing.assert_close(values, torch.tensor(wanted[place], dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_a_token_that_is_never_drawn_fails_the_check() -> None:
    fine = [{"position": "all", "p_value": 0.5, "with": "", "order": "", "sampling": ""}]
    assert _check("sampling", fine, 1000, 0).passed
    check = _check("sampling", fine, 1000, 1)
    assert not check.passed
    assert check.told.endswith("; 1 tokens that the base never draws")


def test_what_is_never_drawn_is_told_from_the_edge_of_a_cut() -> None:
    logits = torch.tensor([0.5, 0.3, 0.1, 0.09995, 0.00005]).log().expand(5, 5)
    tokens = torch.arange(5)
    assert impossible(logits, tokens, Sampling(1.0)).tolist() == [False] * 5
    never = {
        Sampling(1.0, top_k=3): [4],
        Sampling(1.0, top_k=2): [2, 3, 4],
        Sampling(1.0, top_p=0.7): [2, 3, 4],
        Sampling(1.0, top_p=0.795): [2, 3, 4],
        Sampling(1.0, top_p=0.7999): [4],
        # 0.5 and 0.3 of 0.9 stand in front of the two that tie for the third place
        Sampling(1.0, top_k=3, top_p=0.8): [2, 3, 4],
        Sampling(1.0, top_k=3, top_p=0.9): [4],
    }
    tied = torch.tensor([0.6, 0.2, 0.2]).log()[None].expand(3, 3)
    assert not impossible(tied, torch.arange(3), Sampling(1.0, top_p=0.7)).any(), "either of two may come second"
    assert impossible(tied, torch.arange(3), Sampling(1.0, top_p=0.5)).tolist() == [False, True, True]
    for sampling, wanted in never.items():
        assert impossible(logits, tokens, sampling).nonzero().flatten().tolist() == wanted, sampling
    assert impossible(logits, tokens, Sampling()).tolist() == [False] * 5


def test_the_plain_law_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]], dtype=torch.float64).log()

    def law(sampling: Sampling) -> list[float]:
        probabilities, tokens = plain_law(logits, sampling)
        assert tokens.tolist() == [[1, 2, 3, 0]]
        return [round(p, 9) for p in probabilities[0].tolist()]

    assert law(Sampling(1.0)) == [0.4, 0.3, 0.2, 0.1]
    assert law(Sampling()) == [1, 0, 0, 0]
    assert law(Sampling(0.5)) == [round(p / 0.3, 9) for p in (0.16, 0.09, 0.04, 0.01)]
    assert law(Sampling(1.0, top_k=2)) == [round(4 / 7, 9), round(3 / 7, 9), 0, 0]
    assert law(Sampling(1.0, top_p=0.6)) == [round(4 / 7, 9), round(3 / 7, 9), 0, 0]
    assert law(Sampling(1.0, top_k=3, top_p=0.75)) == [round(4 / 7, 9), round(3 / 7, 9), 0, 0]
    assert law(Sampling(1.0, top_k=3, top_p=0.8)) == [round(4 / 9, 9), round(3 / 9, 9), round(2 / 9, 9), 0]


# ---------------------------------------------------------------- the data type of deployment


def test_a_wrong_token_in_the_data_type_of_deployment_is_no_tie(
    rounded: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drafts the second best token is chosen: far from the best one in most places."""
    from specdec.decoding.verify import Verifier

    drafter = moved(rounded, "medusa").to(torch.bfloat16)

    def wrong(self: Verifier, proposal: Proposal, logits: Tensor) -> Any:
        nothing = torch.zeros(len(proposal.token_ids), dtype=torch.bool)
        rank = int(len(proposal.token_ids) > 0)
        return self._verdict(proposal, nothing, logits[0].topk(2).indices[rank, None])

    assert all(check.passed for check in check_deployment(rounded, drafter, prompts(rounded), LIMIT))
    monkeypatch.setattr(Verifier, "__call__", wrong)
    for check in check_deployment(rounded, drafter, prompts(rounded), LIMIT):
        assert not check.passed
        assert "differ where nothing is tied" in check.told
        assert check.figures["rate"] == 0
        assert {one["position"] for one in check.figures["differing"]} == {1}


def test_a_tie_is_told_from_a_failure(rounded: Target) -> None:
    """Ways of reading round differently in bfloat16, by a little."""
    rows = readings(rounded, prompts(rounded)[0], list(range(10, 30)), tree=True)
    assert rows.shape == (3, 31 - 3, rounded.vocab_size)
    apart = (rows.max(0).values - rows.min(0).values).max()
    assert 0 < apart < 0.1 * rows.abs().max()


# ---------------------------------------------------------------- every family


@pytest.mark.soak
@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(law, "SAMPLINGS", (RULE,))
    write_family(tmp_path / family, family)
    base, rounded = (
        Target.from_pretrained(tmp_path / family, dtype=d, device="cpu") for d in ("float32", "bfloat16")
    )
    one, other = (new_drafter(base, SETTINGS[method]()).eval() for _ in range(2))
    other.load_state_dict(one.state_dict())
    other.target = rounded
    deployed = rounded, other.to(torch.bfloat16)
    made = certify(base, one, prompts(base), deployment=deployed, max_new_tokens=LIMIT, tokens=220, say=nothing)
    assert made.passed, made.as_text()


@pytest.mark.soak
def test_exact_decoding_gives_uniform_p_values(target: Target) -> None:
    """Over many seeds: the certificate is refused as rarely as it says."""
    given = subject(target, moved(target, "eagle"))
    found = []
    for seed in range(12):
        for check in check_sampling(dataclasses.replace(given, seed=seed), 800):
            found += [one["p_value"] for one in check.figures["positions"]]
            assert check.passed
    assert len(found) > 200
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01
