"""Each method in a real vLLM: loaded, drafting, accepted as often as in our own decoding, and the same text."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor, cat

from specdec.drafters import load_drafter
from specdec.drafters.deployable.folder import base_facts, check_folder
from specdec.errors import ServerError
from specdec.evaluation import engine
from specdec.evaluation.engine import EnginePlan, benchmark
from specdec.evaluation.engine_client import EngineClient
from specdec.evaluation.summary import Bootstrap
from specdec.export import write_as
from specdec.serving.vllm import RunningVllm, Serving, Vllm, running_vllm
from specdec.targets import Target
from specdec.tracking.gates import InEngine
from tests.vllm.conftest import ANSWER, SETTINGS

pytestmark = pytest.mark.vllm

PLAN = EnginePlan((2,), (1, 3), ANSWER, 1, Bootstrap(200, 0.95, 0), "float32", 128)
MOST = 0.03  # the gate's own default

Measure = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def plain(vllm: Vllm, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningVllm]:
    """The base without a drafter, which all measurements share."""
    log = tmp_path_factory.mktemp("plain") / "server.log"
    with running_vllm(Serving(base, "float32", 128), log, print) as server:
        yield server


@pytest.fixture(scope="module")
def measure(
    plain: RunningVllm,
    base: Path,
    served: Target,
    drafters: dict[str, Path],
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Measure]:
    """Figures of a method's drafter, with vLLM on the folder that is given."""

    @contextmanager
    def shared(serving: Serving, log: Path, say: Any, seconds: float) -> Iterator[RunningVllm]:
        if serving.speculative is None:
            yield plain
            return
        with running_vllm(serving, log, say, seconds) as server:
            yield server

    def run(method: str, folder: Path) -> dict[str, Any]:
        drafter = load_drafter(drafters[method], served)
        plan = replace(PLAN, draft_lengths=(drafter.draft_tokens,))
        logs = tmp_path_factory.mktemp("logs")
        found = benchmark((served, base), (drafter, folder), prompts, plan, logs, print)
        return found["draft_lengths"][str(drafter.draft_tokens)] | {"draft_tokens": drafter.draft_tokens}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "running_vllm", shared)
        yield run


@pytest.mark.parametrize("method", SETTINGS)
def test_served_as_predicted(measure: Measure, drafters: dict[str, Path], method: str) -> None:
    found = measure(method, drafters[method])
    assert found["predicted"]["value"] > 2, "or nothing is shown by it"
    assert abs(found["difference"]) < MOST
    assert found["same_as_plain"] == {"share": 1.0, "first_difference": None}
    assert found["same_as_ours"] == {"share": 1.0, "first_difference": None}
    rates = found["position_rates"]
    assert len(rates) == found["draft_tokens"]
    assert rates == sorted(rates, reverse=True)
    assert 1 + sum(rates) == pytest.approx(found["acceptance_length"]["value"])
    for load in found["loads"].values():
        assert load["speedup"]["value"] > 0


def test_the_layout_of_speculators_too(
    measure: Measure, drafters: dict[str, Path], base: Path, served: Target, tmp_path: Path
) -> None:
    write_as("speculators", load_drafter(drafters["eagle3"], served), tmp_path / "exported", str(base))
    assert abs(measure("eagle3", tmp_path / "exported")["difference"]) < MOST


def layer_ids_off_by_one(config: dict[str, Any], _tensors: dict[str, Tensor]) -> None:
    ids = [i - 1 for i in config["eagle_aux_hidden_state_layer_ids"]]
    config["eagle_aux_hidden_state_layer_ids"] = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = ids


def fc_of_another_order(_config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    parts = tensors["fc.weight"].chunk(3, 1)
    tensors["fc.weight"] = cat([parts[2], *parts[:2]], 1).contiguous()


def d2t_off_by_one(_config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["d2t"] = (tensors["d2t"] + 1).clamp(max=60)


@pytest.mark.parametrize(
    ("change", "seen", "is_served"),
    [
        (layer_ids_off_by_one, "eagle_aux_hidden_state_layer_ids is", True),
        (d2t_off_by_one, "t2d is not what d2t says", False),
        (fc_of_another_order, None, True),  # nothing about it looks wrong: the gate alone finds it
    ],
)
def test_what_the_engine_reads_in_another_way_is_not_promoted(
    measure: Measure,
    drafters: dict[str, Path],
    base: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
    seen: str | None,
    is_served: bool,
) -> None:
    """By the checker, before it is served; or by the gate, had it been."""
    folder = shutil.copytree(drafters["eagle3"], tmp_path / "broken")
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    found = check_folder(folder, base_facts(base))
    assert bool(found) == bool(seen)
    assert all(seen and seen in line for line in found)
    if not is_served:
        return
    own = measure("eagle3", folder)
    lengths = {str(own["draft_tokens"]): own}
    figures = {"draft_lengths": lengths, "best": engine.best_settings(lengths), "draft_tokens": own["draft_tokens"]}
    told = InEngine.parse({**figures, "engine": "0.32", "device": "cpu"}, "here")
    assert told.difference is not None
    assert told.difference < -MOST


def test_a_server_that_dies_in_mid_run_is_told_with_its_last_words(
    vllm: Vllm, base: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    async def ask(server: RunningVllm) -> None:
        async with EngineClient(server, ANSWER) as client:
            await client.run(prompts[:1], 1)
            for process in psutil.Process().children(recursive=True):
                if "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
            await client.run(prompts, 2)

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with (
        pytest.raises(ServerError, match=r"(refuses|broke off|no server answers|ended)"),
        running_vllm(Serving(base, "float32", 128), tmp_path / "server.log", print) as server,
    ):
        asyncio.run(ask(server))
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left


def test_one_that_cannot_start_is_told_with_its_last_words(vllm: Vllm, base: Path, tmp_path: Path) -> None:
    serving = Serving(base, "float32", 128, ("--no-such-option",))
    with (
        pytest.raises(
            ServerError, match=r"(?s)ended \(exit code \d+\) before it was ready; its log .*no-such-option"
        ),
        running_vllm(serving, tmp_path / "server.log", print),
    ):
        pytest.fail("it cannot be ready")


def test_a_method_that_it_lacks(vllm: Vllm, base: Path, tmp_path: Path) -> None:
    unknown = {"method": "hydra", "model": str(base), "num_speculative_tokens": 2}
    with (
        pytest.raises(ServerError, match=r"(?s)before it was ready; its log .*SpeculativeConfig\s+method"),
        running_vllm(Serving(base, "float32", 128, (), unknown), tmp_path / "server.log", print),
    ):
        pytest.fail("it cannot be ready")
