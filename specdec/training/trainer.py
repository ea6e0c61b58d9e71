"""The Hugging Face Trainer around a drafter: the base runs first, without gradients, then the drafter's loss.

Only the drafter is the Trainer's model: only its weights get gradients, optimizer state and checkpoints.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from specdec.data.packing import PackedRow
from specdec.drafters import Drafter, DrafterLoss, Features
from specdec.errors import ModelError
from specdec.targets import Target
from specdec.training.acceptance import AcceptanceCount
from specdec.training.features import Batch, collate, compute_features

LogFunction = Callable[[dict[str, float], int], None]


class DrafterTrainer(Trainer):
    """`on_log(metrics, step)` gets training and validation figures as they come."""

    def __init__(self, target: Target, on_log: LogFunction, **arguments: Any):
        super().__init__(data_collator=collate, **arguments)
        self.target = target
        self._on_log = on_log
        self._meter = _Meter()

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        features = compute_features(self.target, inputs)
        result: DrafterLoss = model(features)
        if not torch.isfinite(result.loss):
            raise ModelError(
                f"the loss is {result.loss.item()} at step {self.state.global_step + 1}: lower the learning rate; "
                "the last checkpoint is kept"
            )
        self._meter.add(features, result)
        return result.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs and "grad_norm" in logs:
            own = {
                "loss": logs["loss"],
                "grad_norm": logs["grad_norm"],
                "learning_rate": logs["learning_rate"],
            }
            self._on_log(own | self._meter.take(), self.state.global_step)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: loss, accuracy and predicted acceptance; the acceptance length picks the best checkpoint."""
        rows: list[PackedRow] = self.eval_dataset
        metrics = validate(self.target, self.model, rows, self.args.per_device_eval_batch_size)
        self._on_log({f"validation/{name}": value for name, value in metrics.items()}, self.state.global_step)
        prefixed = {f"eval_{name}": value for name, value in metrics.items()}
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, prefixed)
        return prefixed


class _Meter:
    """Means over the steps since the last log, and answer tokens a second."""

    def __init__(self) -> None:
        self._results: list[DrafterLoss] = []
        self._answer_tokens = 0
        self._since = time.monotonic()

    def add(self, features: Features, result: DrafterLoss) -> None:
        self._results.append(result)
        self._answer_tokens += int(features.loss_mask.sum())

    def take(self) -> dict[str, float]:
        metrics = per_position("loss", [r.losses for r in self._results])
        metrics |= per_position("accuracy", [r.accuracies for r in self._results])
        metrics["answer_tokens_per_second"] = self._answer_tokens / max(1e-9, time.monotonic() - self._since)
        self.__init__()  # type: ignore[misc]
        return metrics


def per_position(name: str, values: list[Tensor]) -> dict[str, float]:
    """[steps][K] -> {"<name>/position_1": mean, ...}; draft positions are counted from 1 for people."""
    if not values:
        return {}
    means = torch.stack([v.float() for v in values]).mean(0).tolist()
    return {f"{name}/position_{i + 1}": mean for i, mean in enumerate(means)}


@torch.no_grad()
def validate(target: Target, drafter: Drafter, rows: list[PackedRow], batch_size: int) -> dict[str, float]:
    """loss, accuracy per position, and the acceptance length and position rates that decoding will have."""
    drafter.eval()
    results: list[DrafterLoss] = []
    count = AcceptanceCount.empty(drafter.max_draft_tokens)
    for batch in DataLoader(rows, batch_size=batch_size, collate_fn=collate):  # type: ignore[arg-type]
        features = compute_features(target, batch)
        result = drafter(features)
        results.append(result)
        count.add_batch(features, result)
    drafter.train()
    loss = math.fsum(float(r.loss) for r in results) / max(1, len(results))
    rates = {f"rate/position_{i + 1}": rate for i, rate in enumerate(count.position_rates)}
    accuracies = per_position("accuracy", [r.accuracies for r in results])
    return {"loss": loss, "acceptance_length": count.acceptance_length, **rates, **accuracies}
