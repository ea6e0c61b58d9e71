"""The base's states out of a real vLLM: those of our own pass, whatever is cut up, queued or asked for at once."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow, Sequence, pack
from specdec.drafters import Drafter, new_drafter
from specdec.errors import ModelError
from specdec.serving.states import vllm_states
from specdec.serving.vllm import Vllm
from specdec.targets import Target
from specdec.training import TrainingResult, train
from specdec.training.cache import FeatureCache
from specdec.training.features import collate, compute_features
from specdec.training.sources import StateSource
from tests.settings import eagle3_settings, training
from tests.targets.families import write_family

pytestmark = pytest.mark.vllm

LENGTH = 256  # all that the base takes
# Four steps for the longest, and a cache with room for a few requests of those that are asked for at once.
NARROW = ["--enforce-eager", "--max-num-batched-tokens", "64", "--num-gpu-blocks-override", "12"]


def rows(seed: int, lengths: list[int]) -> list[PackedRow]:
    rng = np.random.default_rng(seed)
    found = [Sequence(rng.integers(6, 200, n), np.arange(n) >= 1) for n in lengths]
    return pack(found, LENGTH, 0)


@pytest.fixture(scope="module")
def split() -> tuple[list[PackedRow], list[PackedRow]]:
    short = np.random.default_rng(9).integers(2, 120, 40).tolist()
    return rows(1, [LENGTH, 1, LENGTH - 1, 65, *short]), rows(2, short[:10])


def trained(
    served: Target,
    split: tuple[list[PackedRow], list[PackedRow]],
    folder: Path,
    settings: TrainingSettings,
    source: StateSource | None,
) -> tuple[Drafter, TrainingResult]:
    torch.manual_seed(5)
    drafter = new_drafter(served, eagle3_settings())
    made = train(served, drafter, *split, settings, folder / "work", folder / "cache", lambda *_: None, print, source)
    return drafter, made


def test_training_on_them_is_training_on_our_own(
    vllm: Vllm,
    base: Path,
    served: Target,
    split: tuple[list[PackedRow], list[PackedRow]],
    tmp_path: Path,
) -> None:
    children = psutil.Process().children(recursive=True)
    own = TrainingSettings.model_validate(training(features="cached", max_length=LENGTH))
    theirs = TrainingSettings.model_validate(training(features="vllm", max_length=LENGTH, vllm_args=NARROW))
    aux_layers = new_drafter(served, eagle3_settings()).aux_layers
    source = vllm_states(served, base, aux_layers, theirs, tmp_path / "server.log", print)
    ours, wanted = trained(served, split, tmp_path / "own", own, None)
    drafter, found = trained(served, split, tmp_path / "vllm", theirs, source)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= {p.pid for p in children}
    assert {file.name for file in tmp_path.iterdir()} == {"own", "vllm", "server.log"}

    assert found.steps == wanted.steps > 4
    assert found.metrics["acceptance_length"] == pytest.approx(wanted.metrics["acceptance_length"], abs=2e-3)
    weights = ours.state_dict()
    for name, weight in drafter.state_dict().items():
        torch.testing.assert_close(weight.float(), weights[name].float(), rtol=0, atol=1e-3, msg=name)

    every = [*split[0], *split[1]]
    arguments = (every, aux_layers, tmp_path / "vllm" / "cache", "float32", 1.0, 2, print, source)
    cache = FeatureCache.build(served, *arguments)  # whole: starts nothing
    assert len(list((tmp_path / "vllm" / "cache").iterdir())) == 1
    for row in every:
        batch = collate([row])
        online, kept = compute_features(served, batch, aux_layers), cache.features(batch)
        real = online.document_ids >= 0
        assert online.auxiliary is not None
        assert kept.auxiliary is not None
        torch.testing.assert_close(kept.hidden[real], online.hidden[real], rtol=0, atol=1e-4)
        torch.testing.assert_close(kept.auxiliary[real], online.auxiliary[real], rtol=0, atol=1e-4)


def test_of_a_base_that_is_no_plain_llama(vllm: Vllm, tmp_path: Path) -> None:
    """Biases, an output layer tied to the embeddings, and yarn's angles."""
    write_family(tmp_path / "qwen", "qwen-2.5", num_hidden_layers=5)
    served = Target.from_pretrained(tmp_path / "qwen", device="cpu")
    settings = TrainingSettings.model_validate(
        training(features="vllm", max_length=LENGTH, vllm_args=["--enforce-eager"])
    )
    source = vllm_states(served, tmp_path / "qwen", (1, 3, 4), settings, tmp_path / "server.log", print)
    given = rows(3, [LENGTH, 1, 100, 65, 20, 7])
    assert source
    with source.opened() as run:
        found, own = run(given), compute_features(served, collate(given), (1, 3, 4))
    real = own.document_ids >= 0
    for name in ("hidden", "auxiliary"):
        kept, online = getattr(found, name)[real], getattr(own, name)[real]
        assert (kept - online).abs().max() < 2e-5 * online.abs().max(), name


def test_in_bfloat16_and_what_it_has_not_computed_is_refused(
    vllm: Vllm, base: Path, split: tuple[list[PackedRow], list[PackedRow]], tmp_path: Path
) -> None:
    """With prefix caching the same rows are not computed again, so their states are not there a second time."""
    served = Target.from_pretrained(base, dtype="bfloat16", device="cpu")
    asked = training(features="vllm", max_length=LENGTH, dtype="bfloat16")
    # The settings refuse the second one, for what is shown here.
    arguments = ["--enforce-eager", "--enable-prefix-caching"]
    settings = TrainingSettings.model_validate(asked).model_copy(update={"vllm_args": arguments})
    source = vllm_states(served, base, (1, 3), settings, tmp_path / "server.log", print)
    assert source
    with source.opened() as run:
        found, own = run(split[0]), compute_features(served, collate(split[0]), (1, 3))
        real = own.document_ids >= 0
        for name in ("hidden", "auxiliary"):
            kept, online = getattr(found, name)[real], getattr(own, name)[real]
            assert kept.dtype is torch.bfloat16
            off = (kept.float() - online.float()).norm() / online.float().norm()
            assert off < 0.05, name  # the weights of this base are large
        with pytest.raises(ModelError, match=r"not finite at \d+ of 25\d positions .*is prefix caching on"):
            run(split[0])
