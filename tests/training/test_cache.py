"""Cached features: what the base said, from the disk; whole or made again; never another base's or other rows'."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor

from specdec.data.packing import PackedRow, Sequence, pack
from specdec.drafters import Features, new_drafter
from specdec.errors import ConfigError, DataError, ModelError, SpecdecError
from specdec.progress import Steps
from specdec.targets import Target
from specdec.targets.identity import Identity
from specdec.training import cache as cache_module
from specdec.training.cache import FeatureCache
from specdec.training.features import Batch, collate, compute_features
from specdec.training.sources import Run, StateSource
from tests.settings import eagle3_settings, eagle_settings, medusa_settings

LAYERS = (0, 1, 2)
LENGTH = 48
SMALL = 3 * LENGTH * 64 * 4 * 4  # three rows of hidden states and three layers in float32


@pytest.fixture(scope="module", autouse=True)
def _one_thread(_few_threads: None) -> Iterator[None]:
    """As the children have, so that bits can be compared."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_BYTES", SMALL)


def rows(count: int = 30, seed: int = 0) -> list[PackedRow]:
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(8, 30, count):
        made.append(Sequence(rng.integers(6, 200, length), np.arange(length) >= 4))
    return pack(made, LENGTH, 0)


def build(target: Any, root: Path, taken: list[PackedRow] | None = None, **changes: Any) -> FeatureCache:
    defaults = {"aux_layers": LAYERS, "dtype": "float32", "limit_gb": 1.0, "rows_per_pass": 2, "say": print}
    chosen: dict[str, Any] = {**defaults, **changes}
    return FeatureCache.build(target, rows() if taken is None else taken, root=root, **chosen)


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.safetensors"))


class Counted:
    """A base that counts its passes, and may say something else."""

    def __init__(self, target: Target, change: Callable[[Tensor, Any], Any] = lambda _ids, output: output):
        self._target, self._change, self.passes = target, change, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def forward(self, token_ids: Tensor, **keywords: Any) -> Any:
        self.passes += 1
        return self._change(token_ids, self._target.forward(token_ids, **keywords))


def differently(target: Target, **changes: Any) -> Any:
    counted = Counted(target)
    vars(counted).update(changes)
    return counted


# What comes out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8), ("float8_e4m3fn", 2**-4)])
def test_features_are_those_of_the_base(target: Target, tmp_path: Path, dtype: str, tolerance: float) -> None:
    taken = rows()
    cache = build(target, tmp_path, taken, dtype=dtype)
    assert len(shards(tmp_path)) > 1
    for places in ([0, 1], [5, 3, 11], [len(taken) - 1]):
        batch = collate([taken[i] for i in places])
        batch["counts"] = torch.tensor([7])
        online, cached = compute_features(target, batch, LAYERS), cache.features(batch)
        for name in ("token_ids", "loss_mask", "document_ids", "positions", "counts"):
            assert torch.equal(getattr(online, name), getattr(cached, name)), name
        real = online.document_ids >= 0
        for name in ("hidden", "auxiliary"):
            wanted, found = getattr(online, name), getattr(cached, name)
            assert found.dtype is target.dtype
            assert found.shape == wanted.shape
            # The smallest values of a state in float8 are as far apart as its largest one says.
            least = wanted.abs().unflatten(-1, (-1, 64)).amax(-1, keepdim=True) * 2**-17
            off = (wanted - found).abs().unflatten(-1, (-1, 64))
            assert (off <= wanted.abs().unflatten(-1, (-1, 64)) * tolerance + least)[real].all(), name
            assert not found[~real].any()


def losses(chosen: Any, target: Target, features_of: Callable[[Batch], Features]) -> list[float]:
    """Of some steps of a training."""
    torch.manual_seed(0)
    drafter = new_drafter(target, chosen)
    optimizer = torch.optim.SGD(drafter.parameters(), 0.1)
    found = []
    taken = rows()
    for step in range(6):
        batch = collate([taken[(3 * step + i) % len(taken)] for i in range(2)])
        loss = drafter(features_of(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("chosen", [medusa_settings(), eagle_settings(), eagle3_settings({"aux_layers": [0, 1, 2]})])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 4e-3), ("float8_e4m3fn", 4e-2)])
def test_losses_are_those_of_the_base_run_in_every_step(
    target: Target, tmp_path: Path, chosen: Any, dtype: str, tolerance: float
) -> None:
    layers = new_drafter(target, chosen).aux_layers
    cache = build(target, tmp_path, dtype=dtype, aux_layers=layers)
    online = losses(chosen, target, lambda batch: compute_features(target, batch, layers))
    cached = losses(chosen, target, cache.features)
    assert cached == pytest.approx(online, rel=tolerance)
    assert len(set(online)) == 6


def test_a_base_in_bfloat16_loses_nothing(base_folder: Path, tmp_path: Path) -> None:
    target = Target.from_pretrained(base_folder, dtype="bfloat16", device="cpu")
    taken = rows()[:2]
    cache = build(target, tmp_path, taken, dtype="bfloat16")
    online, cached = compute_features(target, collate(taken), LAYERS), cache.features(collate(taken))
    assert online.auxiliary is not None
    assert cached.auxiliary is not None
    assert cached.hidden.dtype is torch.bfloat16
    real = online.document_ids >= 0
    assert torch.equal(online.hidden[real], cached.hidden[real])
    assert torch.equal(online.auxiliary[real], cached.auxiliary[real])


def test_float8_has_a_scale_for_each_layer(target: Target, tmp_path: Path) -> None:
    """A layer whose states are a million times smaller keeps its bits."""

    def shrink(_ids: Tensor, output: Any) -> Any:
        output.auxiliary[..., :64] *= 1e-6
        return output

    base: Any = Counted(target, shrink)
    taken = rows()[:3]
    cache = build(base, tmp_path, taken, dtype="float8_e4m3fn")
    online = compute_features(base, collate(taken), LAYERS).auxiliary
    found = cache.features(collate(taken)).auxiliary
    assert online is not None
    assert found is not None
    real = collate(taken)["document_ids"] >= 0
    torch.testing.assert_close(found[real][:, :64], online[real][:, :64], rtol=2**-4, atol=1e-10)


def test_a_row_that_is_not_there_is_refused(target: Target, tmp_path: Path) -> None:
    cache = build(target, tmp_path)
    with pytest.raises(DataError, match="a row has no features in"):
        cache.features(collate(rows(seed=1)[:2]))


def test_shards_are_mapped_and_not_loaded(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel reads ahead comes on top of the rows: a few MB."""
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 2**28)
    taken = rows(8)

    def widen(_ids: Tensor, output: Any) -> Any:
        return replace(output, hidden=output.hidden.repeat(1, 1, 2**11))

    base = differently(target, hidden_size=64 * 2**11, _change=widen)
    cache = build(base, tmp_path, taken, aux_layers=())
    (shard,) = shards(tmp_path)
    assert shard.stat().st_size > 60e6
    cache.features(collate([taken[1]]))
    (mapped,) = [m for m in psutil.Process().memory_maps() if m.path == str(shard)]
    assert 20e6 < mapped.rss < 40e6


# What is written


def test_what_is_there_is_used(target: Target, tmp_path: Path) -> None:
    base, said = Counted(target), list[str]()
    build(base, tmp_path, say=said.append)
    passes = base.passes
    assert passes >= len(rows()) / 2
    build(base, tmp_path, say=said.append)
    assert base.passes == passes
    (folder,) = tmp_path.iterdir()
    assert said[1] == f"{said[0]}, from {folder}"


def test_only_tokens_are_stored(target: Target, tmp_path: Path) -> None:
    taken, said = rows(), list[str]()
    tokens = sum(int((row.document_ids >= 0).sum()) for row in taken)
    assert tokens < len(taken) * LENGTH
    build(target, tmp_path, taken, say=said.append, dtype="float8_e4m3fn", aux_layers=(1, 2))
    size = tokens * (3 * 64 + 3 * 4)
    assert said == [f"features of {len(taken)} rows: {size / 1e6:.1f} MB in float8_e4m3fn"]
    written = sum(f.stat().st_size for f in shards(tmp_path))
    assert size < written < size + 500 * len(shards(tmp_path))


def test_whatever_decides_the_states_is_part_of_the_address(target: Target, tmp_path: Path) -> None:
    taken = rows()
    moved = [*taken[1:], taken[0]]
    document_ids = np.where(taken[0].document_ids > 0, 0, taken[0].document_ids)
    joined = PackedRow(taken[0].token_ids, taken[0].loss_mask, document_ids, taken[0].positions)
    other = Identity("other weights", target.identity.tokenizer, target.identity.chat_template)
    build(target, tmp_path, taken)
    build(target, tmp_path, taken, rows_per_pass=3, limit_gb=2.0)  # these decide nothing
    assert len(list(tmp_path.iterdir())) == 1
    build(differently(target, identity=other), tmp_path, taken)
    build(differently(target, dtype=torch.bfloat16), tmp_path, taken)
    build(target, tmp_path, moved)
    build(target, tmp_path, [joined, *taken[1:]])
    build(target, tmp_path, taken, aux_layers=(0, 1))
    build(target, tmp_path, taken, aux_layers=(2, 1, 0))
    build(target, tmp_path, taken, dtype="bfloat16")
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other shape"])
def test_a_torn_shard_is_made_again(target: Target, tmp_path: Path, damage: str) -> None:
    build(target, tmp_path)
    whole, victim = contents(tmp_path), shards(tmp_path)[1]
    if damage == "missing":
        victim.unlink()
    elif damage == "other shape":
        shutil.copy(shards(tmp_path)[-1], victim)
    else:
        victim.write_bytes(victim.read_bytes()[: -1 if damage == "cut" else 0])
    base = Counted(target)
    build(base, tmp_path)
    assert contents(tmp_path) == whole
    assert base.passes == 2  # of the one shard's three rows


# Killed: a process of its own forks a child for each moment, so that torch is imported once.


def _killed_at(moment: str, target: Target, root: Path) -> None:
    """In a child: builds, and kills itself at a moment. `save 2`: in the middle of the second shard's bytes."""
    cache_module.SHARD_BYTES = SMALL
    place, number = moment.split()
    calls = {"count": 0}

    def dies(real: Callable[..., Any], before: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            calls["count"] += 1
            if calls["count"] == int(number):
                before(real, *arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return called

    def half(real: Callable[..., Any], tensors: Any, file: Path) -> None:
        real(tensors, file)
        os.truncate(file, file.stat().st_size // 2)

    if place == "save":
        cache_module.save_file = dies(cache_module.save_file, half)
    elif place == "rename":
        Path.replace = dies(Path.replace)  # type: ignore[method-assign]
    elif place == "pass":
        cache_module.compute_features = dies(cache_module.compute_features)
    elif place == "index":
        cache_module.write_json = dies(cache_module.write_json)
    build(target, root, say=lambda _: None)


def _in_a_child(work: Callable[[], None]) -> int:
    """The process id of a fork that does `work` and nothing else."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return process


def _one_of_two(rank: int, target: Target, root: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    cache_module.SHARD_BYTES = SMALL
    PartialState(cpu=True)  # joins the other process
    base: Any = Counted(target)
    cache = build(base, root / "both", say=lambda line: print(line, file=(root / f"said-{rank}").open("a")))
    (root / f"passes-{rank}").write_text(str(base.passes))
    cache.features(collate(rows()))


def _one_of_two_beside_a_source(rank: int, target: Target, root: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    cache_module.SHARD_BYTES = SMALL
    PartialState(cpu=True)
    base: Any = Counted(target)

    @contextmanager
    def opened() -> Iterator[Run]:
        (root / f"opened-{rank}").touch()
        yield lambda taken: compute_features(target, collate(taken), LAYERS)

    cache = build(base, root / "source", source=StateSource({"served": 1}, 2, opened))
    (root / f"source-passes-{rank}").write_text(str(base.passes))
    cache.features(collate(rows()))


def _forks(base: str, root: Path, moments: list[str], port: int) -> None:
    """Imports once, and forks for each moment."""
    torch.set_num_threads(1)
    target = Target.from_pretrained(base, device="cpu")
    for moment in moments:
        process = _in_a_child(partial(_killed_at, moment, target, root / "killed"))
        status = os.waitpid(process, 0)[1]
        found = sorted(f.name for f in (root / "killed").rglob("*") if f.is_file())
        line = {"moment": moment, "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status), "files": found}
        with (root / "log").open("a") as log:
            print(json.dumps(line), file=log)
    os.environ["MASTER_PORT"] = str(port)
    for work, file in ((_one_of_two, "ends"), (_one_of_two_beside_a_source, "source-ends")):
        both = [_in_a_child(partial(work, rank, target, root)) for rank in range(2)]
        with (root / file).open("w") as ends:
            json.dump([os.waitpid(process, 0)[1] for process in both], ends)


MOMENTS = ["pass 1", "save 1", "rename 1", "pass 4", "save 2", "rename 2", "save 1", "pass 2", "index 1", "index 1"]


@pytest.fixture(scope="module")
def forked(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forked")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=_forks, args=(str(base_folder), root, MOMENTS, port)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return root


def test_killed_at_any_moment_and_resumed_gives_the_same_bytes(target: Target, forked: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (forked / "log").read_text().splitlines()]
    assert [(line["moment"], line["killed"]) for line in lines] == [(moment, signal.SIGKILL) for moment in MOMENTS]
    assert [sum(name[0] != "." for name in line["files"]) for line in lines[:-2]] == [0, 0, 0, 1, 2, 3, 3, 3]
    build(target, tmp_path)
    base = Counted(target)
    build(base, forked / "killed")
    assert base.passes == 0  # all shards were there when the last child died
    assert contents(forked / "killed") == contents(tmp_path)


def test_two_processes_share_the_work(target: Target, forked: Path, tmp_path: Path) -> None:
    build(target, tmp_path)
    assert json.loads((forked / "ends").read_text()) == [0, 0]
    both, alone = contents(forked / "both"), contents(tmp_path)
    assert both.keys() == alone.keys()
    passes = [int((forked / f"passes-{rank}").read_text()) for rank in range(2)]
    base = Counted(target)
    build(base, tmp_path / "counted")
    assert sum(passes) == base.passes
    assert min(passes) > base.passes / 2 - 4
    assert (forked / "said-0").read_text().startswith("features of ")
    assert not (forked / "said-1").exists()


def test_two_processes_have_one_source(target: Target, forked: Path, tmp_path: Path) -> None:
    """The first process asks it for everything; the other one waits, and reads what is there then."""
    assert json.loads((forked / "source-ends").read_text()) == [0, 0]
    assert (forked / "opened-0").exists()
    assert not (forked / "opened-1").exists()
    assert [(forked / f"source-passes-{rank}").read_text() for rank in range(2)] == ["0", "0"]
    build(target, tmp_path)
    made = {file.name: file.read_bytes() for file in shards(forked / "source")}
    assert made == {file.name: file.read_bytes() for file in shards(tmp_path)}


# What is refused


def test_a_cache_above_the_limit_is_refused_before_the_base_runs(target: Target, tmp_path: Path) -> None:
    base = Counted(target)
    with pytest.raises(ConfigError, match=r"would take \d\.\d MB, and cache_limit_gb is 0.0001: raise it, "):
        build(base, tmp_path, limit_gb=1e-4)
    assert base.passes == 0
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_there_has_passed_the_limit(target: Target, tmp_path: Path) -> None:
    build(target, tmp_path)
    build(target, tmp_path, limit_gb=1e-4)


def test_a_disk_with_too_little_room_is_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(target, tmp_path)
    for shard in shards(tmp_path)[1:]:
        shard.unlink()
    build(target, tmp_path, dtype="bfloat16")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    base = Counted(target)
    with pytest.raises(
        SpecdecError, match=r"need \d\.\d MB, and the disk of .* has 0\.3 MB free.*there take 0\.3 MB"
    ):
        build(base, tmp_path)
    assert base.passes == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("Error: I/O error (os error 28)")]
)
def test_a_disk_that_fills_up_keeps_what_is_written(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_file, calls = cache_module.save_file, list[int]()

    def fill(tensors: Any, file: Path) -> None:
        calls.append(0)
        if len(calls) == 3:
            file.write_bytes(b"half")
            raise error
        save_file(tensors, file)

    monkeypatch.setattr(cache_module, "save_file", fill)
    with pytest.raises(SpecdecError, match=r"the disk of .* is full: free some"):
        build(target, tmp_path)
    assert sorted(f.name for f in tmp_path.glob("*/*")) == ["00000.safetensors", "00001.safetensors"]
    build(target, tmp_path)


def test_another_error_of_the_disk_is_not_called_full(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache_module, "save_file", fail)
    with pytest.raises(PermissionError):
        build(target, tmp_path)


@pytest.mark.parametrize("where", ["hidden", "auxiliary"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_stop_it_and_name_the_row(
    target: Target, tmp_path: Path, where: str, value: float
) -> None:
    taken = rows()

    def spoil(token_ids: Tensor, output: Any) -> Any:
        for i, ids in enumerate(token_ids.numpy()):
            if (ids == taken[7].token_ids).all():
                getattr(output, where)[i, 5, 3] = value
        return output

    begin = taken[7].token_ids[:8].tolist()
    with pytest.raises(ModelError) as raised:
        build(Counted(target, spoil), tmp_path)
    assert str(raised.value) == (
        f"the states of tiny-llama are not finite in the packed rows 7 (counted from 0; the first begins with the "
        f"tokens {begin}): try dtype float32"
    )
    assert len(shards(tmp_path)) == 2


def test_states_of_padding_do_not_matter(target: Target, tmp_path: Path) -> None:
    taken = rows()

    def spoil(token_ids: Tensor, output: Any) -> Any:
        output.hidden[token_ids == 0] = float("nan")  # no token of a conversation has this id
        return output

    build(Counted(target, spoil), tmp_path, taken)
    assert any((row.token_ids == 0).any() for row in taken)


def test_progress_is_said(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.progress.EVERY", 0.0)
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 1)
    said: list[str] = []
    taken = rows()[:4]
    counted = Counted(target)
    monkeypatch.setattr(Steps, "now", lambda _self: 10.0 * counted.passes)
    build(counted, tmp_path, taken, say=said.append)
    assert said[1:] == [
        "features: 25% computed, 30 s left",
        "features: 50% computed, 20 s left",
        "features: 75% computed, 10 s left",
        "features: 100% computed, 0 s left",
    ]
