"""The base's states on the disk: its pass is paid once, and not in every epoch.

`<root>/<address>/00000.safetensors`, ... and `index.json`, written last. The address is a hash of all that decides
the states, so what is there can be used, and what has changed lies elsewhere. A shard holds the tokens of some rows
one behind the other, without padding: `hidden[N, H]`, `auxiliary[N, A*H]`; in float8 also what each layer's state
of each token was divided by: `hidden_scale[N, 1]`, `auxiliary_scale[N, A]`.

A shard is written aside, synced and renamed: after a kill at any time the shards that are there are whole, and
the others are made again, to the same bytes. Training maps the shards into memory and never loads one whole.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specdec.data.packing import PackedRow
from specdec.drafters import Features
from specdec.errors import ConfigError, DataError, ModelError, SpecdecError, disk_is_full
from specdec.io import replacing, sha256_file, sha256_json, write_json
from specdec.progress import Say, Steps
from specdec.targets import Target
from specdec.targets import target as target_code
from specdec.training.features import Batch, collate, compute_features
from specdec.training.processes import is_main, share, state
from specdec.training.sources import Run, StateSource

SHARD_BYTES = 256 * 2**20
_KEYED = ("token_ids", "document_ids", "positions")  # the states depend on nothing else of a row
_FLOAT8_MAX = 448.0  # of float8_e4m3fn


class FeatureCache:
    """What the base says about some packed rows, read from the disk. `build` makes one."""

    def __init__(self, target: Target, layout: "_Layout", keys: list[bytes], folder: Path):
        self._target, self._layout, self._folder = target, layout, folder
        self._places = {key: place for place, key in enumerate(keys)}
        self._shards: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        target: Target,
        rows: list[PackedRow],
        aux_layers: tuple[int, ...],
        root: Path,
        dtype: str,
        limit_gb: float,
        rows_per_pass: int,
        say: Say,
        source: StateSource | None = None,
    ) -> "FeatureCache":
        """The cache of these rows below `root`; what it lacks is computed, by each process a share.

        source: who runs the base instead, for the first process alone.
        dtype: `float32`, `bfloat16` or `float8_e4m3fn`. Raises ConfigError above `limit_gb`, SpecdecError when the
        disk is too small, ModelError when the base's states are not finite.
        """
        keys = [_key(np.stack([getattr(row, name) for name in _KEYED])) for row in rows]
        about = _about(target, keys, aux_layers, dtype, source)
        folder = root / sha256_json(about)[:16]
        layout = _Layout.of(rows, target.hidden_size, len(aux_layers), getattr(torch, dtype))
        missing = [shard for shard in range(layout.shards) if not layout.is_whole(folder, shard)]
        size = f"features of {len(rows):,} rows: {_size(layout.bytes(range(layout.shards)))} in {dtype}"
        if is_main():
            say(size if missing else f"{size}, from {folder}")
        if missing:
            _check_room(root, folder, layout, missing, limit_gb)
        _Writer(target, rows, aux_layers, layout, folder, rows_per_pass, say, source).write(missing)
        if is_main() and not (folder / "index.json").exists():
            write_json(folder / "index.json", {**about, "rows": len(rows), "shards": layout.shards})
        if is_main():
            os.utime(folder / "index.json")  # when it was used last: `specdec clean` removes the others first
        return cls(target, layout, keys, folder)

    def features(self, batch: Batch) -> Features:
        """As `compute_features`, on the base's device and in its dtype; the states of padding are 0.

        Rows are found by their content. Raises DataError for one that is not in the cache.
        """
        batch = {name: tensor.to(self._target.device) for name, tensor in batch.items()}
        keyed = torch.stack([batch[name] for name in _KEYED], 1).cpu().numpy()
        try:
            places = [self._places[_key(row)] for row in keyed]
        except KeyError:
            raise DataError(f"a row has no features in {self._folder}: they are of other rows") from None
        real = batch["document_ids"] >= 0
        return Features(
            batch["token_ids"],
            batch["loss_mask"],
            batch["document_ids"],
            batch["positions"],
            self._states("hidden", places, real),
            self._states("auxiliary", places, real) if "auxiliary" in self._layout.layers else None,
            batch.get("counts"),
        )

    def _states(self, name: str, places: list[int], real: Tensor) -> Tensor:
        """[B, T, layers*H]."""
        stored = self._tokens(name, places)
        scale = self._tokens(f"{name}_scale", places) if self._layout.scaled else None
        tokens = _decode(stored, scale, self._target.dtype)
        states = tokens.new_zeros((*real.shape, tokens.shape[-1]))
        states[real] = tokens
        return states

    def _tokens(self, name: str, places: list[int]) -> Tensor:
        """[N, ...]: the tokens of some rows, one row behind the other."""
        slices = []
        for place in places:
            shard, start, stop = self._layout.where(place)
            if shard not in self._shards:
                self._shards[shard] = safe_open(_file(self._folder, shard), "pt")
            slices.append(self._shards[shard].get_slice(name)[start:stop])
        return torch.cat(slices).to(self._target.device)


@dataclass(frozen=True)
class _Layout:
    """Where what lies. starts[R+1]: tokens in front of each row; layers: how many `hidden` and `auxiliary` hold."""

    starts: list[int]
    rows_per_shard: int
    width: int
    layers: dict[str, int]
    dtype: torch.dtype

    @classmethod
    def of(cls, rows: list[PackedRow], width: int, aux_layers: int, dtype: torch.dtype) -> "_Layout":
        counts = [int((row.document_ids >= 0).sum()) for row in rows]
        layers = {"hidden": 1, **({"auxiliary": aux_layers} if aux_layers else {})}
        row_bytes = len(rows[0].token_ids) * sum(layers.values()) * width * dtype.itemsize
        return cls([0, *np.cumsum(counts).tolist()], max(1, SHARD_BYTES // row_bytes), width, layers, dtype)

    @property
    def shards(self) -> int:
        return -(-(len(self.starts) - 1) // self.rows_per_shard)

    @property
    def scaled(self) -> bool:
        return self.dtype is torch.float8_e4m3fn

    def rows(self, shard: int) -> range:
        return range(len(self.starts) - 1)[shard * self.rows_per_shard : (shard + 1) * self.rows_per_shard]

    def where(self, place: int) -> tuple[int, int, int]:
        """(shard, first token in it, one behind the last) of a row."""
        shard = place // self.rows_per_shard
        first = self.starts[shard * self.rows_per_shard]
        return shard, self.starts[place] - first, self.starts[place + 1] - first

    def shapes(self, shard: int) -> dict[str, list[int]]:
        """Every tensor of a shard."""
        rows = self.rows(shard)
        tokens = self.starts[rows.stop] - self.starts[rows.start]
        shapes = {name: [tokens, count * self.width] for name, count in self.layers.items()}
        if self.scaled:
            shapes |= {f"{name}_scale": [tokens, count] for name, count in self.layers.items()}
        return shapes

    def bytes(self, shards: Iterable[int]) -> int:
        """Of some shards, without their headers."""
        shapes = [item for shard in shards for item in self.shapes(shard).items()]
        return sum(n * width * (4 if "scale" in name else self.dtype.itemsize) for name, (n, width) in shapes)

    def is_whole(self, folder: Path, shard: int) -> bool:
        """Whether a shard is there with all its bytes; looks at its header and size alone."""
        try:
            with safe_open(_file(folder, shard), "pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()} == self.shapes(shard)  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return False


@dataclass
class _Writer:
    """Runs the base over rows and writes what it says."""

    target: Target
    rows: list[PackedRow]
    aux_layers: tuple[int, ...]
    layout: _Layout
    folder: Path
    rows_per_pass: int
    say: Say
    source: StateSource | None

    def write(self, missing: list[int]) -> None:
        """Every process calls this with the same shards."""
        state().wait_for_everyone()  # nobody writes while somebody still looks for what is missing
        if self.source is None:
            self._fill([missing[i] for i in share(len(missing))], self._own_pass, self.rows_per_pass)
        elif missing and is_main():
            with self.source.opened() as run:
                self._fill(missing, run, self.source.at_once)
        else:
            self._wait_for(missing)
        state().wait_for_everyone()
        lost = [shard for shard in missing if not self.layout.is_whole(self.folder, shard)]
        if lost:
            raise DataError(
                f"{_file(self.folder, lost[0])} is not there after it was written: all processes need the same disk"
            )

    def _wait_for(self, missing: list[int]) -> None:
        """Not in a collective operation, which would give up after some minutes. Should the first process fail,
        whoever started us ends us."""
        while not all(self.layout.is_whole(self.folder, shard) for shard in missing):
            time.sleep(1)

    def _own_pass(self, rows: list[PackedRow]) -> Features:
        return compute_features(self.target, collate(rows), self.aux_layers)

    def _fill(self, own: list[int], run: Run, at_once: int) -> None:
        rows = [self.layout.rows(shard) for shard in own]
        total, done = sum(map(len, rows)), 0

        def passed(count: int) -> None:
            nonlocal done
            done += count
            if is_main():  # the others have as much to do
                shown.show(done, f"features: {done / total:.0%} computed")

        shown = Steps(self.say, total)
        with shown if is_main() else nullcontext():
            for shard in own:
                self._write(shard, self._shard(self.layout.rows(shard), run, at_once, passed))

    def _write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        try:
            with replacing(_file(self.folder, shard)) as aside:
                save_file(tensors, aside)
        except (OSError, SafetensorError) as error:
            if not disk_is_full(error):
                raise
            raise SpecdecError(
                f"the disk of {self.folder} is full: free some space and run the same command again; "
                "the features that are written are kept"
            ) from error

    def _shard(self, places: range, run: Run, at_once: int, passed: Callable[[int], None]) -> dict[str, Tensor]:
        """The tensors of a shard. The passes depend on the shard alone, so its bytes do too."""
        made = [self._pass(places[i : i + at_once], run, passed) for i in range(0, len(places), at_once)]
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}

    def _pass(self, places: range, run: Run, passed: Callable[[int], None]) -> dict[str, Tensor]:
        features = run([self.rows[i] for i in places])
        real = features.document_ids >= 0
        tensors: dict[str, Tensor] = {}
        for name, layers in self.layout.layers.items():
            states = getattr(features, name)
            self._check_finite(states, real, places)
            tensors |= dict(_encode(name, states[real], layers, self.layout.dtype))
        passed(len(places))
        return tensors

    def _check_finite(self, states: Tensor, real: Tensor, places: range) -> None:
        bad = (~states.isfinite().all(-1) & real).any(-1).nonzero().flatten().tolist()
        if bad:
            numbers = ", ".join(str(places[i]) for i in bad)
            begin = self.rows[places[bad[0]]].token_ids[:8].tolist()
            raise ModelError(
                f"the states of {self.target.name} are not finite in the packed rows {numbers} (counted from 0; "
                f"the first begins with the tokens {begin}): try dtype float32"
            )


def _encode(name: str, states: Tensor, layers: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """states[N, layers*H] as it is stored, by the tensors' names."""
    if dtype is not torch.float8_e4m3fn:
        yield name, states.to(dtype).cpu()
        return
    split = states.float().unflatten(-1, (layers, -1))
    scale = split.abs().amax(-1).clamp(min=1e-30) / _FLOAT8_MAX
    yield name, (split / scale[..., None]).to(dtype).flatten(1).cpu()
    yield f"{name}_scale", scale.cpu()


def _decode(stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if scale is None:
        return stored.to(dtype)
    split = stored.float().unflatten(-1, (scale.shape[-1], -1))
    return (split * scale[..., None]).flatten(1).to(dtype)


def _key(keyed: np.ndarray) -> bytes:
    """Of one row's `_KEYED`[3, L]."""
    return hashlib.sha256(np.ascontiguousarray(keyed, dtype=np.int64).tobytes()).digest()


# The code by which states are taken and stored: with other code they may be others.
_DECIDING = (Path(__file__), Path(__file__).with_name("features.py"), Path(target_code.__file__))


def _about(
    target: Target, keys: list[bytes], aux_layers: tuple[int, ...], dtype: str, source: StateSource | None
) -> dict[str, Any]:
    """Everything that decides the bytes of a cache."""
    return {
        "base": target.identity.as_dict(),
        "base_dtype": str(target.dtype).removeprefix("torch."),
        "data": hashlib.sha256(b"".join(keys)).hexdigest(),
        "aux_layers": list(aux_layers),
        "dtype": dtype,
        "shard_bytes": SHARD_BYTES,
        "code": [sha256_file(file) for file in _DECIDING],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "source": source and source.about,
    }


def _check_room(root: Path, folder: Path, layout: _Layout, missing: list[int], limit_gb: float) -> None:
    """Raises ConfigError above the limit, SpecdecError when what is missing does not fit on the disk."""
    smaller = "take a smaller cache_dtype (float8_e4m3fn: a byte a value), or set features to online"
    whole, needed = layout.bytes(range(layout.shards)), layout.bytes(missing)
    if whole > limit_gb * 1e9:
        raise ConfigError(
            f"cached features would take {_size(whole)}, and cache_limit_gb is {limit_gb:g}: raise it, {smaller}"
        )
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        others = sum(f.stat().st_size for f in root.rglob("*.safetensors") if f.parent != folder)
        raise SpecdecError(
            f"cached features need {_size(needed)}, and the disk of {root} has {_size(free)} free: free some space "
            f"(features of other trainings there take {_size(others)}), {smaller}"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"
