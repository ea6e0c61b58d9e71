"""Bases that cannot be decoded with drafters, or not with trees, are refused by name, not served wrongly."""

import copy
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.decoding import generate
from specdec.errors import ModelError
from specdec.targets import Target
from tests.drafters.test_trees import moved
from tests.targets import families

RECURRENT = {
    "rwkv": ("RwkvForCausalLM", {}),
    "mamba": ("MambaForCausalLM", {}),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention", "conv"]}),
    "doge": ("DogeForCausalLM", {"keep_window_size": 32}),
}
CHAINS_ONLY = {
    "gpt-neo": (
        "GPTNeoForCausalLM",
        {
            "num_hidden_layers": 2,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
        "cuts a window by itself .window_size., not by a mask: draft trees cannot be verified",
    ),
    "bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 2}, "takes no mask of a draft tree .*: draft chains"),
}


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "float32") for family in RECURRENT), ("rwkv", "bfloat16"), ("doge", "bfloat16")]
)
def test_what_cannot_take_back_a_draft_is_no_base(
    tmp_path: Path, family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.FAMILIES, family, RECURRENT[family])
    families.write_family(tmp_path, family)
    with pytest.raises(ModelError, match="so drafts cannot be verified: choose a base of attention layers"):
        Target.from_pretrained(tmp_path, dtype, "cpu")


def test_behind_a_window_that_is_too_long_to_try_there_is_no_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to there what cuts it by itself is right: everything is seen. Loading reads no such text."""
    lengths, forward = [], Target.forward

    def noted(self: Target, token_ids: torch.Tensor, *further: Any, **named: Any) -> Any:
        lengths.append(token_ids.shape[1])
        return forward(self, token_ids, *further, **named)

    monkeypatch.setattr(Target, "forward", noted)
    monkeypatch.setitem(families.FAMILIES, "doge", ("DogeForCausalLM", {"keep_window_size": 1100}))
    families.write_family(tmp_path, "doge", max_position_embeddings=2048)
    assert Target.from_pretrained(tmp_path, device="cpu").max_positions == 1100
    assert max(lengths) <= 12


def test_a_window_longer_than_the_vocabulary_is_looked_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.FAMILIES, "doge", ("DogeForCausalLM", {"keep_window_size": 1000}))
    families.write_family(tmp_path, "doge", max_position_embeddings=2048)
    with pytest.raises(ModelError, match="so drafts cannot be verified"):
        Target.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_memory_that_is_short_is_no_fault_of_the_base(
    target: Target, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Target, "crop", short)
    with pytest.raises(type(error), match=str(error)):
        target.check_cache()
    monkeypatch.setattr(target, "_trees_checked", False)
    monkeypatch.setattr(Target, "forward_tree", short)
    with pytest.raises(type(error), match=str(error)):
        target.check_trees()


@pytest.mark.parametrize("family", CHAINS_ONLY)
def test_what_keeps_to_no_mask_takes_chains(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, own, said = CHAINS_ONLY[family]
    monkeypatch.setitem(families.FAMILIES, family, (architecture, own))
    families.write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ModelError, match=said):
        target.check_trees()
    drafter = moved(target, "eagle")
    prompt = torch.randint(6, target.vocab_size, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    assert generate(target, drafter, prompt, 30).token_ids == generate(target, None, prompt, 30).token_ids


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """They take turns after every few instructions, so that what may come between two of them does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_several_threads_may_decode_with_one_base(target: Target) -> None:
    """Each hears its own passes: as behind `mlflow models serve`."""
    drafter = moved(target, "eagle3")
    prompts = [[1, 4, *range(20 + 7 * i, 60 + 7 * i), 2, 5] for i in range(4)]
    wanted = [generate(target, drafter, prompt, 40) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: generate(target, drafter, prompt, 40), prompts)) == wanted


@pytest.mark.usefixtures("hasty_threads")
def test_several_threads_may_begin_when_weights_have_changed(target: Target) -> None:
    own, count = copy.deepcopy(target), 8
    together = threading.Barrier(count)

    def begin(thread: int) -> None:
        for _ in range(20):
            if thread == 0:
                for weight in own.model.parameters():
                    weight.data.mul_(1.001)
            together.wait(60)
            cache = own.new_cache()
            with torch.inference_mode():
                own.forward(torch.arange(4)[None], cache=cache)
            together.wait(60)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(begin, range(count)))


def test_a_copy_of_a_drafter_has_a_base_of_its_own(target: Target) -> None:
    drafter = moved(target, "eagle3")
    other = copy.deepcopy(drafter)
    assert other.target.model is not target.model
    assert (
        generate(other.target, other, [1, 4, 40], 9).token_ids == generate(target, drafter, [1, 4, 40], 9).token_ids
    )


def test_an_interrupt_leaves_no_listener_behind(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = target.decoder_layers
    before = [list(module._forward_hooks) for module in modules]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(modules[1], "register_forward_hook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target.forward(torch.arange(4)[None], layers=(1, 2))
    assert [list(module._forward_hooks) for module in modules] == before
    monkeypatch.undo()
    assert target.forward(torch.arange(4)[None], layers=(1, 2)).auxiliary is not None


@pytest.mark.usefixtures("hasty_threads")
def test_several_threads_may_read_with_one_base_at_once(target: Target) -> None:
    """A pass sets hooks and takes them off again, which no other pass may see half done."""
    ids = torch.arange(4)[None]
    layers = (0, 1, target.num_layers)
    wanted = target.forward(ids, layers=layers).auxiliary

    def read(_thread: int) -> list[bool]:
        with torch.inference_mode():
            return [torch.equal(target.forward(ids, layers=layers).auxiliary, wanted) for _ in range(200)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(equal) for equal in pool.map(read, range(8)))


@pytest.mark.parametrize("fixed", [False, True])
def test_a_pass_waits_for_that_of_another_thread(target: Target, fixed: bool) -> None:
    ids, cache = torch.arange(4)[None], target.fixed_cache(8, 4) if fixed else None
    other: list[Future[Any]] = []

    def meanwhile(*_: Any) -> None:
        hook.remove()
        other.append(pool.submit(target.forward, ids, layers=(1, 2)))
        with pytest.raises(TimeoutError):
            other[0].result(timeout=0.5)

    with ThreadPoolExecutor(1) as pool:
        hook = target.decoder_layers[-1].register_forward_pre_hook(meanwhile)
        target.forward(ids, cache=cache, layers=(1, 2))
        assert other[0].result().auxiliary is not None


def test_passes_of_the_model_in_another_thread_are_not_heard(target: Target) -> None:
    ids = torch.arange(4)[None]
    wanted = target.forward(ids, layers=(1, 2)).auxiliary

    def elsewhere(*_: Any) -> None:
        hook.remove()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(target.model, torch.arange(9)[None]).result()

    hook = target.decoder_layers[-1].register_forward_pre_hook(elsewhere)
    assert torch.equal(target.forward(ids, layers=(1, 2)).auxiliary, wanted)
