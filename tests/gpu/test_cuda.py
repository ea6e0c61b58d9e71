"""On an NVIDIA GPU: the same losses, gradients and tokens as on the CPU, one wait a step, training that learns."""

import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow, Sequence, pack
from specdec.decoding import GREEDY, generate, steps
from specdec.drafters import Drafter, Sampling, new_drafter
from specdec.drafters.attention import attend_to
from specdec.evaluation.certificate import certify
from specdec.targets import Target
from specdec.training import train
from specdec.training.features import collate, compute_features
from tests.decoding.test_fixed import COMPILED, FORMS, SAMPLED
from tests.drafters.test_attention import Case, case, naive
from tests.drafters.test_trees import CHOICES, moved
from tests.evaluation.certified import prompts
from tests.settings import training

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

LIMIT = 40


@pytest.fixture(scope="module", autouse=True)
def _a_gpu() -> None:
    assert torch.cuda.is_available(), "these tests need an NVIDIA GPU, and a torch that was built for it"


@pytest.fixture(scope="module")
def cuda(base_folder: Path) -> Target:
    return Target.from_pretrained(base_folder, device="cuda")


def rows(target: Target, count: int, length: int = 96) -> list[PackedRow]:
    """Packed documents of a language in which every token is the last one plus one."""
    random = torch.Generator().manual_seed(0)
    documents = []
    while sum(map(len, documents)) < 0.9 * count * length:
        size, start = (int(torch.randint(low, high, (), generator=random)) for low, high in ((20, 60), (6, 200)))
        ids = 6 + (torch.arange(size) + start) % 200
        documents.append(Sequence(ids.numpy(), (torch.arange(size) > 8).numpy()))
    return pack(documents, length, 0)


def loss_and_gradients(target: Target, drafter: Drafter, made: list[PackedRow]) -> dict[str, Tensor]:
    batch = {name: value.to(target.device) for name, value in collate(made).items()}
    found = drafter(compute_features(target, batch, drafter.aux_layers), measure=True)
    found.loss.backward()
    gradients = {name: weight.grad for name, weight in drafter.named_parameters() if weight.grad is not None}
    figures = {f"sums {name}": value.float() for name, value in found.sums.items()}
    return {name: value.detach().cpu() for name, value in {"loss": found.loss, **gradients, **figures}.items()}


@pytest.mark.parametrize("choice", CHOICES)
def test_losses_and_gradients_are_those_of_the_cpu(target: Target, cuda: Target, choice: str) -> None:
    made = rows(target, 3)
    ours = moved(target, choice)
    theirs = new_drafter(cuda, CHOICES[choice], torch.arange(target.vocab_size, device="cuda")).to("cuda").eval()
    theirs.load_state_dict(ours.state_dict())
    wanted, found = loss_and_gradients(target, ours, made), loss_and_gradients(cuda, theirs, made)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-4 * (1 + float(value.abs().max())), msg=name
        )


@pytest.mark.parametrize("chain", [0, 2])
@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 4, 64), (8, 2, 128), (4, 1, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_is_that_of_one_query_after_the_other(
    dtype: torch.dtype, heads: int, groups: int, size: int, chain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.drafters.test_attention.SIZE", size)
    documents = torch.tensor([[0] * 70 + [1] * 64 + [-1] * 10, [0] * 5 + [1] * 130 + [2] * 9])
    made = case(documents, chain, heads, groups, share=0.3)
    rounded = [t.to(dtype).double() for t in made.tensors]
    wanted = made.by(naive, rounded)
    there = Case([t.to("cuda", dtype) for t in made.tensors], made.rows.cuda(), documents.cuda())
    found = there.by(attend_to, there.tensors)
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    for a, b in zip(found, wanted, strict=True):
        assert float((a.cpu().double() - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=20)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("choice", "form"), [*itertools.product(CHOICES, FORMS)])
def test_a_fixed_cache_changes_no_token(cuda: Target, choice: str, form: str, sampling: Sampling) -> None:
    drafter = moved(cuda, choice).to("cuda")
    cache = cuda.fixed_cache(100, 6)
    for prompt in prompts(cuda):
        choices: dict[str, Any] = {"tree": FORMS[form], "seed": 3}
        wanted = generate(cuda, drafter, prompt, LIMIT, sampling, **choices)
        assert generate(cuda, drafter, prompt, LIMIT, sampling, cache=cache, **choices) == wanted
        if sampling.greedy:
            assert wanted.token_ids == generate(cuda, None, prompt, LIMIT).token_ids
        cache.reset()


@pytest.mark.parametrize(("choice", "form", "sampling"), COMPILED)
def test_captured_as_graphs_it_says_the_same(cuda: Target, choice: str, form: str, sampling: Sampling) -> None:
    drafter, tree = moved(cuda, choice).to("cuda"), FORMS[form]
    drafter.target = mine = Target(cuda.model, cuda.tokenizer, cuda.identity, cuda.name)
    wanted = [generate(mine, drafter, prompt, LIMIT, sampling, seed=5, tree=tree) for prompt in prompts(cuda)]
    mine.compile()
    drafter.compile_drafting()
    cache = mine.fixed_cache(100, (tree.nodes if tree else drafter.draft_tokens) + 1)
    for _ in range(3):  # a form is run, then recorded, then replayed
        for prompt, plain in zip(prompts(cuda), wanted, strict=True):
            assert generate(mine, drafter, prompt, LIMIT, sampling, seed=5, tree=tree, cache=cache) == plain
            cache.reset()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("choice", "form"), [*itertools.product(("medusa", "eagle3"), FORMS)])
def test_a_step_waits_for_the_gpu_once(cuda: Target, choice: str, form: str, sampling: Sampling) -> None:
    drafter = moved(cuda, choice).to("cuda")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            made = list(steps(cuda, drafter, prompts(cuda)[0], LIMIT, sampling, seed=5, tree=FORMS[form]))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [f"{one.filename}:{one.lineno}" for one in waits if "synchronizing" in str(one.message)]
    assert len(found) <= len(made) + 8, sorted(set(found))


def test_the_certificate_passes_in_the_data_type_of_deployment_too(base_folder: Path, cuda: Target) -> None:
    half = Target.from_pretrained(base_folder, "bfloat16", "cuda")
    drafter = moved(cuda, "eagle3").to("cuda")
    served = moved(half, "eagle3").to("cuda")
    certificate = certify(cuda, drafter, prompts(cuda), deployment=(half, served), tokens=600, say=print)
    assert certificate.passed, certificate.as_text()


@pytest.mark.parametrize("features", ["online", "cached"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("choice", ["medusa", "eagle", "eagle3"])
def test_it_learns(base_folder: Path, tmp_path: Path, choice: str, dtype: str, features: str) -> None:
    target = Target.from_pretrained(base_folder, dtype, "cuda")
    made = rows(target, 12)
    torch.manual_seed(0)
    drafter = new_drafter(target, CHOICES[choice], torch.arange(target.vocab_size, device="cuda"))
    chosen = training(epochs=12, learning_rate=5e-3, max_length=96, features=features, dtype=dtype, rows_per_step=4)
    settings = TrainingSettings.model_validate(chosen)
    logs: list[dict[str, float]] = []
    before = copy.deepcopy(drafter.state_dict())
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    train(target, drafter, made, made[:4], settings, work, cache, lambda log, _step: logs.append(log), print)
    losses = [log["loss"] for log in logs if "loss" in log]
    assert losses[-1] < 0.8 * losses[0]
    assert any(not torch.equal(before[name].cpu(), value.cpu()) for name, value in drafter.state_dict().items())
