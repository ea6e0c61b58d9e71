"""Batches of packed rows, and what the frozen base says about them."""

from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from specdec.data.packing import PackedRow
from specdec.drafters import Features
from specdec.targets import Target

Batch = dict[str, Tensor]
FeatureSource = Callable[[Batch], Features]


def collate(rows: Rows[PackedRow]) -> Batch:
    """Stacks packed rows to token_ids, loss_mask, document_ids, positions: [B, L] each."""
    names = ("token_ids", "loss_mask", "document_ids", "positions")
    return {name: torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in names}


def compute_features(target: Target, batch: Batch, aux_layers: tuple[int, ...] = ()) -> Features:
    """One pass of the base over a batch, without gradients. batch["counts"], when there: `Features.counts`."""
    batch = {name: tensor.to(target.device) for name, tensor in batch.items()}
    with torch.no_grad():
        output = target.forward(batch["token_ids"], positions=batch["positions"], layers=aux_layers)
    return Features(
        batch["token_ids"],
        batch["loss_mask"],
        batch["document_ids"],
        batch["positions"],
        output.hidden,
        output.auxiliary,
        batch.get("counts"),
    )
