"""A key-value cache of fixed size: a pass over it has the same shapes whatever it holds.

Such passes can be compiled, and captured as CUDA graphs. The memory is allocated once; where the context ends is a
number on the device, so nothing waits for the host.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from specdec.errors import ConfigError

COMPILED_FORMS = 64  # numbers of tokens, and auxiliary layers, that one function is compiled for at most


def compiled(function: Any, device: torch.device) -> Any:
    """`function`, compiled once for each set of shapes that it is called with.

    On a GPU it is captured as CUDA graphs: its results stand in memory that the next call of any such function uses
    again, so clone what is to outlive it.
    """
    compiler: Any = torch.compile  # whose declaration lacks recompile_limit
    mode = "reduce-overhead" if device.type == "cuda" else None
    return compiler(function, dynamic=False, mode=mode, recompile_limit=COMPILED_FORMS)


class FixedCache(Cache):
    """Room for `length` positions; passes over `step` tokens or fewer are all run as passes over `step`.

    Give `length` the longest context, and `step` rows more for what is cut back. `end` []: how many positions it
    holds, on the device; `held`: the same on the host. `beside`: what each drafter keeps for as long as this cache,
    by drafter. Raises ConfigError for sizes that hold nothing.
    """

    def __init__(self, layers: int, length: int, step: int, device: torch.device):
        if not 0 < step <= length:
            raise ConfigError(f"a cache for {length} positions cannot take {step} tokens at once")
        self.length, self.step, self.held = length, step, 0
        self.beside: dict[Any, Any] = {}
        self.end = torch.zeros((), dtype=torch.long, device=device)
        torch._dynamo.mark_static_address(self.end)
        super().__init__(layers=[_Layer(length, self.end) for _ in range(layers)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.held

    def advance(self, count: int) -> None:
        """`count` positions more are held."""
        self.held += count
        self.end.fill_(self.held)

    def crop(self, tokens_to_remove: int) -> None:
        """As a DynamicCache has it: `tokens_to_remove` is negative."""
        self.advance(tokens_to_remove)

    def reset(self) -> None:
        """Empty again, with the same memory."""
        self.crop(-self.held)


class _Layer(CacheLayerMixin):
    """keys, values [1, kv, length, D]. New rows go behind `end`, which the cache moves once all layers have them."""

    is_compileable = True
    is_croppable = True

    def __init__(self, length: int, end: Tensor):
        super().__init__()
        self.length, self.end = length, end

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(rows: Tensor) -> Tensor:
            found = rows.new_zeros(*rows.shape[:2], self.length, rows.shape[3])
            torch._dynamo.mark_static_address(found)
            return found

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_keywords: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        places = self.end + torch.arange(key_states.shape[2], device=self.end.device)
        self.keys.index_copy_(2, places, key_states)
        self.values.index_copy_(2, places, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length, 0

    def get_seq_length(self) -> int:
        return int(self.end)

    def get_max_length(self) -> int:
        return self.length
