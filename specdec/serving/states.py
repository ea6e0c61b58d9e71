"""vLLM as the source of training features: it runs the base, and hands the states over in files.

vLLM's speculative method `extract_hidden_states` keeps the outputs of the layers that are asked for, of which layer
i is the output of decoder layer i-1 before the final norm, as in `Target.forward`. The connector in `inside_vllm`
writes them. What is behind the final norm is computed here, from the last layer's output, by the base's own norm.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow
from specdec.drafters import Features
from specdec.errors import ConfigError, ModelError
from specdec.io import sha256_file
from specdec.serving.launch import answers
from specdec.serving.states_client import Shape, fetch_states
from specdec.serving.vllm import VLLM_PYTHON, RunningVllm, Say, Serving, find_vllm, running_vllm, vllm_python
from specdec.targets import Target
from specdec.targets import final_norm as final_norm_code
from specdec.targets.final_norm import final_norm
from specdec.training.features import collate
from specdec.training.sources import Run, StateSource

INSIDE = Path(__file__).with_name("inside_vllm")  # what vLLM's process imports
ROWS_AT_ONCE = 64
PROBE_TOKENS = 64
# From our own states, as a share of their size, at most.
FARTHEST = {"float32": 0.01, "bfloat16": 0.1, "float16": 0.1}
FARTHEST_QUANTISED = 0.3
_HERE = Path(__file__).parent
_DECIDING = (  # what the states depend on, beside vLLM
    Path(__file__),
    _HERE / "launch.py",
    _HERE / "states_client.py",
    _HERE / "vllm.py",
    INSIDE / "specdec_states.py",
    Path(final_norm_code.__file__),
)
_LOOK = """
import importlib.util as u, pathlib, sys
root = pathlib.Path(u.find_spec("vllm").submodule_search_locations[0])
there = (root / "model_executor/models/extract_hidden_states.py").exists()
sys.exit(not (there and "HiddenStateCacheSpec" in (root / "v1/kv_cache_interface.py").read_text()))
"""


def vllm_states(
    target: Target, base: Path, aux_layers: tuple[int, ...], settings: TrainingSettings, log: Path, say: Say
) -> StateSource | None:
    """The source that `features: vllm` asks for; None for others. base: the folder of `target`. log: of the server;
    the files of states lie in a folder beside it, a few at a time.

    Raises ConfigError where there is no vLLM, or one that cannot hand out states.
    """
    if settings.features != "vllm":
        return None
    vllm = find_vllm()
    if vllm is None:
        raise ConfigError(
            f"features is vllm, and vLLM is not installed for {vllm_python()}: install it (`specdec doctor` says "
            f"how), set {VLLM_PYTHON} to its python, or set features to cached"
        )
    if not answers([vllm.python, "-c", _LOOK]):
        raise ConfigError(
            f"features is vllm, and {vllm} cannot hand out states (it needs extract_hidden_states, as 0.32 has it): "
            "install a newer one, or set features to cached"
        )
    about = {
        "vllm": vllm.version,
        "torch": vllm.torch,
        "device": "cuda" if vllm.gpus else "cpu",
        "arguments": settings.vllm_args,
        "code": [sha256_file(file) for file in _DECIDING],
    }

    @contextmanager
    def opened() -> Iterator[Run]:
        _check_positions(target, settings.max_length + 1)
        asked = _Asked(target, aux_layers, final_norm(target), _farthest(target, settings))
        own = _own_states(target, min(PROBE_TOKENS, settings.max_length))
        with _off_the_gpu(target), _private(log.with_name("states")) as folder:
            serving = _serving(target, base, asked.layers, settings, folder)
            with running_vllm(serving, log, say) as server:
                asked.check(server, folder, own, say)
                yield lambda rows: asked.features(server, folder, rows)

    return StateSource(about, ROWS_AT_ONCE, opened)


def _farthest(target: Target, settings: TrainingSettings) -> float:
    quantised = getattr(target.model.config, "quantization_config", None) is not None
    asked = {argument.split("=")[0] for argument in settings.vllm_args} & {"--quantization", "-q"}
    return FARTHEST_QUANTISED if quantised or asked else FARTHEST[settings.dtype]


def _check_positions(target: Target, length: int) -> None:
    """vLLM takes the long factors of such a base for every sequence where it may grow long, transformers takes the
    short ones as long as one is short: near enough to pass for the same. Raises ConfigError."""
    rope = getattr(target.model.config, "rope_parameters", None) or {}
    short = rope.get("original_max_position_embeddings") or target.max_positions
    if rope.get("rope_type") == "longrope" and length > short:
        raise ConfigError(
            f"features is vllm, and {target.name} (longrope) has other positions in vLLM above {short} tokens, of "
            f"which max_length and one more is {length}: set max_length below {short}, or features to cached"
        )


def _serving(
    target: Target, base: Path, layers: tuple[int, ...], settings: TrainingSettings, folder: Path
) -> Serving:
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}},
    }
    connector = {
        "kv_connector": "StatesConnector",
        "kv_connector_module_path": "specdec_states",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(folder.resolve())},
    }
    # States of positions that the prefix cache holds are not computed, and so not kept.
    own = ("--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(connector))
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH")]))}
    length = settings.max_length + 1  # the token that vLLM must answer with; nothing is computed at its position
    if length > target.max_positions:
        environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    return Serving(base.resolve(), settings.dtype, length, (*own, *settings.vllm_args), speculative, environment)


@dataclass(frozen=True)
class _Asked:
    """What is asked of the server, and what is made of it."""

    target: Target
    aux_layers: tuple[int, ...]
    norm: nn.Module
    farthest: float

    @property
    def layers(self) -> tuple[int, ...]:
        """As vLLM hands them out: each once, ascending. The last one is what `hidden` is made of."""
        return tuple(sorted({*self.aux_layers, self.target.num_layers}))

    def features(self, server: RunningVllm, folder: Path, rows: list[PackedRow]) -> Features:
        """As `compute_features` of these rows; states of padding are 0. Each document is a request of its own."""
        batch = collate(rows)
        documents = [
            (row, batch["document_ids"][row] == document)
            for row in range(len(rows))
            for document in range(int(batch["document_ids"][row].max()) + 1)
        ]
        sequences = [batch["token_ids"][row][places].tolist() for row, places in documents]
        found = self._fetch(server, folder, sequences)
        states = found[0].new_zeros(*batch["token_ids"].shape, *found[0].shape[1:])
        for (row, places), one in zip(documents, found, strict=True):
            states[row, places] = one
        hidden, auxiliary = self._parts(states.to(self.target.device))
        return Features(
            **{name: tensor.to(self.target.device) for name, tensor in batch.items()},
            hidden=hidden,
            auxiliary=auxiliary,
        )

    def check(self, server: RunningVllm, folder: Path, own: Tensor, say: Say) -> None:
        """Raises ModelError unless each layer of vLLM's is the one of ours: the nearest, and not far.

        own[1 + layers, T, H]: ours of the tokens 0 to T-1.
        """
        (states,) = self._fetch(server, folder, [list(range(own.shape[1]))])
        far = []
        for place, layer in enumerate(self.layers):
            off = (own - states[:, place].float()).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)
            far.append(float(off[layer]))
            if int(off.argmin()) != layer or off[layer] > self.farthest:
                raise ModelError(
                    f"vLLM's states of layer {layer} of {self.target.name} are {off[layer]:.1%} off from our own "
                    f"(the nearest of ours is layer {int(off.argmin())}): set features to cached"
                )
        say(
            f"vLLM hands out the states of layers {', '.join(map(str, self.layers))}, {max(far):.1e} off from our own"
        )

    def _fetch(self, server: RunningVllm, folder: Path, sequences: list[list[int]]) -> list[Tensor]:
        shape = Shape(len(self.layers), self.target.hidden_size, self.target.dtype)
        return asyncio.run(fetch_states(server, folder, sequences, shape))

    @torch.no_grad()
    def _parts(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """(hidden[B, T, H], auxiliary[B, T, A*H]) of states[B, T, layers, H]."""
        hidden = self.norm(states[:, :, -1])
        picked = [states[:, :, self.layers.index(layer)] for layer in self.aux_layers]
        return hidden, torch.cat(picked, -1) if picked else None


@torch.no_grad()
def _own_states(target: Target, tokens: int) -> Tensor:
    """[1 + layers, T, H] in float32 on the CPU, of the tokens 0 to T-1: the embeddings, and every layer."""
    every = tuple(range(target.num_layers + 1))
    ids = torch.arange(min(tokens, target.vocab_size), device=target.device)[None]
    read = target.forward(ids, layers=every).auxiliary
    assert read is not None
    return torch.stack(read[0].chunk(len(every), -1)).float().cpu()


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """An empty folder for this user alone, gone afterwards. What a killed run has left there goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _off_the_gpu(target: Target) -> Iterator[None]:
    """The base waits in the machine's memory, since vLLM wants nearly all of the GPU's."""
    device = target.device
    if device.type != "cuda":
        yield
        return
    target.model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        target.model.to(device)
