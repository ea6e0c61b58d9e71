"""A KV connector of vLLM that writes the states of every finished prompt to a file.

It goes with the speculative method `extract_hidden_states`, which keeps the states asked for in a paged cache of
their own (vllm/v1/spec_decode/extract_hidden_states.py). vLLM's `ExampleHiddenStatesConnector` copies on CUDA
streams; this one copies at once, so it runs on a CPU too. `<shared_storage_path>/<request>.safetensors`, renamed when
it is whole: `states[T, layers, H]` (layers ascending), `token_ids[T]`. What no pass of the request filled is NaN.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec


@dataclass
class Finished:
    """A request whose blocks are held until its states are written."""

    request: str
    token_ids: list[int]
    blocks: list[int]


@dataclass
class Metadata(KVConnectorMetadata):
    """From the scheduler to the workers, with every step."""

    finished: list[Finished] = field(default_factory=list)


class StatesConnector(KVConnectorBase_V1, SupportsHMA):
    """Half of it lives in the scheduler, the other half in each worker."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._folder = Path(self._kv_transfer_config.get_from_extra_config("shared_storage_path", ""))
        self._group = _states_group(kv_cache_config)
        self._block_size: int = kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._finished: list[Finished] = []
        self._layer = ""
        self._cache = torch.empty(0)
        self._filled = torch.empty(0, dtype=torch.bool)

    def get_finished_count(self) -> int:
        """One worker of those of a tensor-parallel group writes."""
        return 1

    # In the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        prompt = request.prompt_token_ids
        if not prompt or request.num_computed_tokens < len(prompt):  # aborted
            return False, None
        self._finished.append(Finished(request.request_id, list(prompt), list(block_ids)))
        return True, {"states": self._file(request.request_id).name}

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._group >= len(block_ids):  # never scheduled
            return False, None
        return self.request_finished(request, block_ids[self._group])

    def build_connector_meta(self, scheduler_output: Any) -> Metadata:
        finished, self._finished = self._finished, []
        return Metadata(finished)

    # In a worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer

        (self._layer,) = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        self._cache = kv_caches[self._layer]  # [blocks, layers, block size, H]
        if self._cache.shape[2] != self._block_size:
            raise ValueError(f"blocks of {self._cache.shape[2]} states, where {self._block_size} were told")
        slots = self._cache.shape[0] * self._block_size
        self._filled = torch.zeros(slots, dtype=torch.bool, device=self._cache.device)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_kwargs: Any) -> None:
        """Called behind every pass: notes what the pass has filled."""
        if layer_name == self._layer:
            self._filled[attn_metadata.slot_mapping.clamp(min=0)] = True  # -1 is padding; block 0 is nobody's

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        written = set()
        if self.has_connector_metadata() and get_tensor_model_parallel_rank() == 0:
            metadata = self._get_connector_metadata()
            assert isinstance(metadata, Metadata)
            for finished in metadata.finished:
                self._write(finished)
                written.add(finished.request)
        return written or None, None

    def start_load_kv(self, forward_context: Any, **_kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def _write(self, finished: Finished) -> None:
        blocks = torch.tensor(finished.blocks, device=self._cache.device)
        offsets = torch.arange(self._block_size, device=self._cache.device)
        slots = (blocks[:, None] * self._block_size + offsets).flatten()[: len(finished.token_ids)]
        states = self._cache[slots // self._block_size, :, slots % self._block_size]
        states[~self._filled[slots]] = torch.nan
        self._filled[slots] = False
        tensors = {"states": states.cpu().contiguous(), "token_ids": torch.tensor(finished.token_ids)}
        file = self._file(finished.request)
        aside = file.with_suffix(".part")
        save_file(tensors, aside)
        os.replace(aside, file)

    def _file(self, request: str) -> Path:
        return self._folder / f"{request}.safetensors"

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """States of a token lie together."""
        return "LBNHC"


def _states_group(kv_cache_config: Any) -> int:
    """Of the block tables, the one of the states: their own, or that of a base whose layers all share one."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) == 1:
        return 0
    found = [i for i, group in enumerate(groups) if isinstance(group.kv_cache_spec, HiddenStateCacheSpec)]
    if len(found) != 1:
        raise ValueError("the states have no group of their own in the KV cache: this base cannot hand them out")
    return found[0]
