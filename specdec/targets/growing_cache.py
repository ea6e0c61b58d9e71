"""A key-value cache that takes a pass's rows in place.

transformers' DynamicCache concatenates, which copies the whole context in every layer of every pass; here only a
buffer that is full is copied, into one a quarter longer.
"""

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SPARE = 64  # rows of room that a buffer has at least beyond what it is made for


class GrowingCache(Cache):
    """Holds what a DynamicCache does, whole layers: sliding windows can be rolled back too."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)


class _Layer(DynamicLayer):
    """keys, values [B, kv, held, D]: the first rows of buffers that may have room behind them."""

    keys: Any
    values: Any

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers: list[Tensor | None] = [None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_keywords: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self.keys = self._append(0, self.keys, held, key_states)
        self.values = self._append(1, self.values, held, value_states)
        return self.keys, self.values

    def _append(self, which: int, rows: Tensor, held: int, new: Tensor) -> Tensor:
        stop = held + new.shape[2]
        buffer = self._buffers[which]
        # Other methods of the layer may have put other rows in place of the buffer's.
        if buffer is None or buffer.shape[2] < stop or (held and rows.data_ptr() != buffer.data_ptr()):
            buffer = new.new_empty(*new.shape[:2], stop + stop // 4 + SPARE, new.shape[3])
            if held:
                buffer[:, :, :held] = rows
            self._buffers[which] = buffer
        buffer[:, :, held:stop] = new
        return buffer[:, :, :stop]
