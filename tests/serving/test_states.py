"""States from a vLLM: the client's bounds and checks, and a feature cache that is filled by it."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow, Sequence, pack
from specdec.errors import ConfigError, ModelError, RequestRefused, ServerError, SpecdecError
from specdec.serving import states as states_module
from specdec.serving import states_client
from specdec.serving.launch import server_environment
from specdec.serving.states import vllm_states
from specdec.serving.states_client import IN_FLIGHT, Shape, fetch_states
from specdec.serving.vllm import VLLM_PYTHON, RunningVllm
from specdec.targets import Target
from specdec.targets.final_norm import final_norm
from specdec.training import cache as cache_module
from specdec.training.cache import FeatureCache
from specdec.training.features import collate, compute_features
from specdec.training.sources import StateSource
from tests.serving.states_server import Stand, StatesServer, Tensors, serving_states
from tests.settings import training

LAYERS = (0, 1, 2)
SHAPE = Shape(len(LAYERS), 64, torch.float32)
LENGTH = 48
PROMPTS = [[7, 8, 9], [10], list(range(6, 6 + LENGTH))]


def rows(count: int = 30) -> list[PackedRow]:
    rng = np.random.default_rng(0)
    found = [Sequence(rng.integers(6, 200, n), np.arange(n) >= 4) for n in rng.integers(8, 30, count)]
    return pack(found, LENGTH, 0)


def fetched(states: StatesServer, prompts: list[list[int]] = PROMPTS) -> list[Tensor]:
    with serving_states(states) as server:
        return asyncio.run(fetch_states(server, states.folder, prompts, SHAPE))


# The client


@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_each_gets_its_own_states_and_no_file_is_left(target: Target, tmp_path: Path, delay: float) -> None:
    found = fetched(StatesServer(target, LAYERS, tmp_path, delay=delay))
    for prompt, states in zip(PROMPTS, found, strict=True):
        with torch.no_grad():  # as there: packed weights are not for gradients
            wanted = target.forward(torch.tensor([prompt]), layers=LAYERS).auxiliary
        assert wanted is not None
        assert torch.equal(states.flatten(1), wanted[0])
    assert not list(tmp_path.iterdir())


def test_no_more_than_so_many_at_once(target: Target, tmp_path: Path) -> None:
    states = StatesServer(target, LAYERS, tmp_path)
    fetched(states, [[6 + i] for i in range(3 * IN_FLIGHT)])
    assert len(states.asked) == 3 * IN_FLIGHT
    assert 4 < states.most <= IN_FLIGHT


def nan_at_1(tensors: Tensors) -> Tensors:
    tensors["states"][-1, 0] = torch.nan
    return tensors


WRONG: dict[str, tuple[Callable[[Tensors], Tensors | None], type[SpecdecError], str]] = {
    "missing": (lambda _: None, ServerError, r"cmpl-\d.safetensors is not there 0 s after vLLM's answer"),
    "short": (
        lambda t: {"states": t["states"][1:].contiguous(), "token_ids": t["token_ids"]},
        ServerError,
        r"cmpl-\d.safetensors, which vLLM .* holds float32\[2, 3, 64\] as states: wanted float32\[3, 3, 64\]",
    ),
    "fewer layers": (
        lambda t: {"states": t["states"][:, 1:].contiguous(), "token_ids": t["token_ids"]},
        ServerError,
        r"holds float32\[3, 2, 64\] as states: wanted float32\[3, 3, 64\]",
    ),
    "another dtype": (
        lambda t: {**t, "states": t["states"].half()},
        ServerError,
        r"holds float16\[3, 3, 64\] as states: wanted float32\[3, 3, 64\]",
    ),
    "no token ids": (
        lambda t: {"states": t["states"]},
        ServerError,
        r"holds nothing as token_ids: wanted int64\[3\]",
    ),
    "other token ids": (lambda t: {**t, "token_ids": t["token_ids"] + 1}, ServerError, "is of other tokens than"),
    "NaN": (nan_at_1, ModelError, r"not finite at 1 of 3 positions \(the first: 2\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_not_what_was_asked_for_is_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(states_client, "FILE_SECONDS", 0.3)
    change, error, told = WRONG[wrong]
    with pytest.raises(error, match=told) as raised:
        fetched(StatesServer(target, LAYERS, tmp_path, change), PROMPTS[:1])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cmpl-1.safetensors"
    save_file({"states": torch.zeros(3, 3, 64), "token_ids": torch.arange(3)}, file)
    os.truncate(file, file.stat().st_size - 5)
    with pytest.raises(ServerError, match=r"cmpl-1.safetensors, which vLLM has written, cannot be read: "):
        states_client.read_states(file, [0, 1, 2], SHAPE)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"status": 500}, ServerError, r"refuses 3 tokens \(HTTP 500\): .*no, thank you"),
        ({"status": 400}, RequestRefused, r"refuses 3 tokens \(HTTP 400\): .*no, thank you"),
        ({"named": lambda _: None}, RequestRefused, "runs without specdec's connector"),
        ({"named": lambda name: f"../{name}"}, RequestRefused, "runs without specdec's connector"),
    ],
)
def test_an_answer_that_is_none(
    target: Target, tmp_path: Path, changes: dict[str, Any], error: type[SpecdecError], told: str
) -> None:
    with pytest.raises(error, match=told):
        fetched(StatesServer(target, LAYERS, tmp_path, **changes), PROMPTS[:1])


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    server = RunningVllm("http://127.0.0.1:9", "key", "base")
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9 broke off: "):
        asyncio.run(fetch_states(server, tmp_path, PROMPTS, SHAPE))


# A cache that is filled by it


@pytest.fixture
def stand(target: Target, monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand(target)
    stand.take_over(monkeypatch)
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 3 * LENGTH * 64 * 4 * 4)  # three rows
    return stand


def source(
    target: Target, base: Path, aux_layers: tuple[int, ...] = (2, 0, 1), say: Any = print, **changes: Any
) -> StateSource:
    settings = TrainingSettings.model_validate(training(**{"features": "vllm", "max_length": LENGTH, **changes}))
    made = vllm_states(target, base, aux_layers, settings, base.parent / "work" / "vllm.log", say)
    assert made
    return made


def build(
    target: Target, root: Path, made: StateSource | None, aux_layers: tuple[int, ...] = (2, 0, 1)
) -> FeatureCache:
    return FeatureCache.build(target, rows(), aux_layers, root, "float32", 1.0, 2, print, made)


@pytest.mark.parametrize("aux_layers", [(), (2, 0, 1), (1,)])
def test_features_are_those_of_our_own_pass(
    target: Target, base_folder: Path, tmp_path: Path, stand: Stand, aux_layers: tuple[int, ...]
) -> None:
    """Whatever the layers' order, the last one among them or not."""
    cache = build(target, tmp_path, source(target, base_folder, aux_layers), aux_layers)
    for batch in (collate(rows()[:3]), collate(rows()[5:6])):
        own, found = compute_features(target, batch, aux_layers), cache.features(batch)
        real = own.document_ids >= 0
        torch.testing.assert_close(found.hidden[real], own.hidden[real], rtol=1e-5, atol=1e-5)
        assert not found.hidden[~real].any()
        if aux_layers:
            assert own.auxiliary is not None
            assert found.auxiliary is not None
            torch.testing.assert_close(found.auxiliary[real], own.auxiliary[real], rtol=1e-5, atol=1e-5)
        else:
            assert found.auxiliary is None
    assert not stand.servers[0].folder.exists()


def test_what_a_killed_run_left_behind_is_removed(
    target: Target, base_folder: Path, tmp_path: Path, stand: Stand
) -> None:
    left = base_folder.parent / "work" / "states" / "cmpl-0.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of a file")
    build(target, tmp_path, source(target, base_folder))
    assert not left.parent.exists()


def test_what_is_there_needs_no_server(target: Target, base_folder: Path, tmp_path: Path, stand: Stand) -> None:
    build(target, tmp_path, source(target, base_folder))
    build(target, tmp_path, source(target, base_folder))
    assert len(stand.servers) == 1


def test_another_source_has_another_address(target: Target, base_folder: Path, tmp_path: Path, stand: Stand) -> None:
    build(target, tmp_path, None)
    build(target, tmp_path, source(target, base_folder))
    build(target, tmp_path, source(target, base_folder, vllm_args=["--quantization", "fp8"]))
    stand.version = "0.33.0"
    build(target, tmp_path, source(target, base_folder))
    assert len(list(tmp_path.iterdir())) == 4


def test_after_an_end_the_shards_that_are_there_are_kept(
    target: Target, base_folder: Path, tmp_path: Path, stand: Stand
) -> None:
    whole = tmp_path / "whole"
    build(target, whole, source(target, base_folder))
    prompts = len(stand.servers[0].asked)
    left = 20

    def ends(tensors: Tensors) -> Tensors:
        nonlocal left
        left -= 1
        return tensors if left > 0 else {"states": tensors["states"]}

    stand.change = ends
    with pytest.raises(ServerError, match="holds nothing as token_ids"):
        build(target, tmp_path / "ended", source(target, base_folder))
    there = list((tmp_path / "ended").rglob("*.safetensors"))
    assert there
    stand.change = lambda tensors: tensors
    build(target, tmp_path / "ended", source(target, base_folder))
    assert 0 < len(stand.servers[2].asked) < prompts - 3
    for file in whole.rglob("*.safetensors"):
        assert (tmp_path / "ended" / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert not any(server.folder.exists() for server in stand.servers)


def shifted(tensors: Tensors) -> Tensors:
    return {**tensors, "states": tensors["states"].roll(1, 1)}


def scaled(tensors: Tensors) -> Tensors:
    return {**tensors, "states": tensors["states"] * 1.5}


def a_little_off(tensors: Tensors) -> Tensors:
    return {**tensors, "states": tensors["states"] * 1.02}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (a_little_off, r"states of layer 0 of .* are 2.0% off from our own"),  # nobody rounds here
        (shifted, r"states of layer 0 of .* are .*% off from our own \(the nearest of ours is layer 2\)"),
        (scaled, r"states of layer 0 of .* are 50.0% off from our own"),
    ],
)
def test_states_of_another_layer_or_base_are_refused_before_anything_is_written(
    target: Target,
    base_folder: Path,
    tmp_path: Path,
    stand: Stand,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    told: str,
) -> None:
    stand.change = change
    if change is shifted:
        monkeypatch.setitem(states_module.FARTHEST, "float32", float("inf"))  # that another one is nearer is enough
    with pytest.raises(ModelError, match=told):
        build(target, tmp_path, source(target, base_folder))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_how_vllm_is_started(target: Target, base_folder: Path, tmp_path: Path, stand: Stand) -> None:
    """256 is what the base takes: the one more that vLLM asks for holds the token that it must answer with."""
    source_of = source(target, base_folder, (1,), vllm_args=["--tensor-parallel-size", "2"], max_length=256)
    with source_of.opened():
        pass
    (serving,) = stand.servings
    assert (serving.dtype, serving.max_model_len) == ("float32", 257)
    assert serving.environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"
    assert "--no-enable-prefix-caching" in serving.arguments
    assert serving.arguments[-2:] == ("--tensor-parallel-size", "2")
    assert (Path(serving.environment["PYTHONPATH"].split(os.pathsep)[0]) / "specdec_states.py").is_file()


def test_a_quantised_base_may_be_further_off(
    target: Target, base_folder: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.change = lambda tensors: {**tensors, "states": tensors["states"] * 1.2}
    build(target, tmp_path / "asked", source(target, base_folder, vllm_args=["--quantization=fp8"]))
    monkeypatch.setattr(target.model.config, "quantization_config", {"bits": 4}, raising=False)
    build(target, tmp_path / "stored", source(target, base_folder))


def test_positions_that_vllm_stretches_are_refused(
    target: Target, base_folder: Path, tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long-RoPE base has other factors in vLLM as soon as it may grow long, here as soon as a sequence is long."""
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    monkeypatch.setattr(target.model.config, "rope_parameters", rope, raising=False)
    with (
        pytest.raises(ConfigError, match=r"\(longrope\) has other positions in vLLM above 64 tokens"),
        source(target, base_folder, max_length=64).opened(),
    ):
        pass
    assert not stand.servings
    with source(target, base_folder, max_length=63).opened():
        assert stand.servings


def test_a_server_knows_nothing_of_our_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_NAME", "MASTER_ADDR")
    for name in (*given, "TORCHELASTIC_USE_AGENT_STORE", "OMP_NUM_THREADS", "SPECDEC_API_KEY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANKING", "mine")
    made = server_environment()
    assert not made.keys() & {*given, "TORCHELASTIC_USE_AGENT_STORE", "OMP_NUM_THREADS", "SPECDEC_API_KEY"}
    assert made["RANKING"] == "mine"
    monkeypatch.delenv("RANK")
    assert server_environment()["OMP_NUM_THREADS"] == "1", "set by a person, not by a launcher"


# What cannot work


def test_without_a_vllm(target: Target, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VLLM_PYTHON, str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"features is vllm, and vLLM is not installed for .*/python: install it"):
        source(target, base_folder)


def test_a_vllm_that_cannot_hand_out_states(
    target: Target, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(VLLM_PYTHON, sys.executable)
    with pytest.raises(ConfigError, match=r"features is vllm, and vLLM .* cannot hand out states \(it needs extract"):
        source(target, base_folder)


class Plain(nn.Module):
    """A norm that does not show its weight."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states)


def test_a_final_norm_that_is_not_found(base_folder: Path) -> None:
    target = Target.from_pretrained(base_folder, device="cpu")
    assert final_norm(target) is target.model.model.norm
    target.model.model.norm = Plain(target.model.model.norm)
    with pytest.raises(ModelError, match="the norm behind its last layer was not found"):
        final_norm(target)
