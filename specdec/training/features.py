"""Batches of packed rows, and what the frozen base says about them."""

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from specdec.data.packing import PackedRow
from specdec.drafters import Features
from specdec.targets import Target

Batch = dict[str, Tensor]


def collate(rows: Rows[PackedRow]) -> Batch:
    """Stacks packed rows to token_ids, loss_mask, document_ids, positions: [B, L] each."""
    names = ("token_ids", "loss_mask", "document_ids", "positions")
    return {name: torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in names}


def compute_features(target: Target, batch: Batch) -> Features:
    """One pass of the base over a batch, without gradients."""
    batch = {name: tensor.to(target.device) for name, tensor in batch.items()}
    with torch.no_grad():
        hidden = target.forward(batch["token_ids"], positions=batch["positions"]).hidden
    return Features(batch["token_ids"], batch["loss_mask"], batch["document_ids"], hidden)
