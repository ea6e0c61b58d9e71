"""The Hugging Face Trainer around a drafter: the base runs first, without gradients, then the drafter's loss.

Only the drafter is the Trainer's model: only its weights get gradients, optimizer state and checkpoints. A step's
loss is divided by the positions of the whole step, over all its passes and processes: how a step is cut up changes
nothing.
"""

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import Trainer

from specdec.data.packing import PackedRow
from specdec.drafters import Drafter, DrafterLoss, Features, answer_counts
from specdec.errors import ModelError
from specdec.training.acceptance import AcceptanceCount
from specdec.training.features import Batch, FeatureSource, collate
from specdec.training.processes import is_main, passes_of_each, share, sum_over_processes

LogFunction = Callable[[dict[str, float], int], None]


class Schedule(Dataset[PackedRow]):
    """Every row of a whole training in its order, all epochs in one: resuming needs a place and no random state.

    Each epoch is a permutation of its own; it is filled up to whole steps with its own first rows.
    """

    def __init__(self, rows: list[PackedRow], rows_per_step: int, steps: int, seed: int):
        self._rows = rows
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        while len(order) < steps * rows_per_step:
            epoch = torch.randperm(len(rows), generator=generator).tolist()
            missing = -len(epoch) % rows_per_step
            order += epoch + [epoch[i % len(epoch)] for i in range(missing)]
        self._order = order[: steps * rows_per_step]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> PackedRow:
        return self._rows[self._order[place]]


class DrafterTrainer(Trainer):
    """features_of: what the base says of a batch. `on_log(metrics, step)` gets figures as they come."""

    def __init__(self, features_of: FeatureSource, on_log: LogFunction, **arguments: Any):
        super().__init__(data_collator=collate, **arguments)
        self._features_of = features_of
        self._on_log = on_log
        self._meter = _Meter(self.model.loss_positions)

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> Any:
        """The passes of one step; each gets the counts of the whole step."""
        with self._meter.waiting():
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            positions = self._drafter.loss_positions
            own = torch.stack([answer_counts(b["loss_mask"], b["document_ids"], positions) for b in batches]).sum(0)
            counts = self.accelerator.reduce(own.to(self.accelerator.device), "sum")
            for batch in batches:
                batch["counts"] = counts
        return batches, None

    @property
    def _drafter(self) -> Drafter:
        return self.accelerator.unwrap_model(self.model)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        features = self._features_of(inputs)
        result: DrafterLoss = model(features)
        if not torch.isfinite(result.loss):
            raise ModelError(_not_finite(result.loss.item(), features, inputs, self.state.global_step + 1))
        self._meter.add(features, result)
        # The Trainer divides by the passes of a step and DDP by the processes; the counts have done both.
        return result.loss * self.current_gradient_accumulation_steps * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "loss" in logs and "grad_norm" in logs:
            own = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")}
            self._tell(own | self._meter.take())

    def _tell(self, metrics: dict[str, float]) -> None:
        if is_main():
            self._on_log(metrics, self.state.global_step)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: loss, accuracy and predicted acceptance; the acceptance length picks the best checkpoint."""
        rows: list[PackedRow] = self.eval_dataset
        metrics = validate(self._features_of, self._drafter, rows, self.args.per_device_eval_batch_size)
        self._tell({f"validation/{name}": value for name, value in metrics.items()})
        prefixed = {f"eval_{name}": value for name, value in metrics.items()}
        control = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, prefixed)
        return prefixed


def _not_finite(loss: float, features: Features, inputs: Batch, step: int) -> str:
    """Whose fault it is: the base's states of some rows, or the drafter's weights."""
    states = [features.hidden] + ([] if features.auxiliary is None else [features.auxiliary])
    bad = torch.stack([~s.isfinite().flatten(1).all(1) for s in states]).any(0)
    if bad.any():
        rows = ", ".join(_start_of(inputs["token_ids"][i]) for i in bad.nonzero().squeeze(-1).tolist()[:3])
        return (
            f"the base's states are not finite in step {step}, in {int(bad.sum())} packed rows (they begin with the "
            f"tokens {rows}): try dtype float32; the last checkpoint is kept"
        )
    return f"the loss is {loss} at step {step}: lower the learning rate; the last checkpoint is kept"


def _start_of(token_ids: Tensor) -> str:
    return f"[{', '.join(map(str, token_ids[:8].tolist()))}, ...]"


class _Meter:
    """Means over the steps since the last log, answer tokens a second, waiting for data, memory."""

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self._start()

    def _start(self) -> None:
        self._figures = Figures(self._positions)
        self._answer_tokens = torch.zeros((), dtype=torch.long)
        self._waited = 0.0
        self._since = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def add(self, features: Features, result: DrafterLoss) -> None:
        self._figures.add(result)
        self._answer_tokens = self._answer_tokens.to(features.loss_mask.device) + features.loss_mask.sum()

    def take(self) -> dict[str, float]:
        """Figures of this process, but for the tokens, which are of all."""
        passed = max(1e-9, time.monotonic() - self._since)
        metrics = self._figures.means()
        metrics["answer_tokens_per_second"] = int(sum_over_processes(self._answer_tokens)) / passed
        metrics["data_wait_share"] = self._waited / passed
        metrics["peak_memory_gb"] = _peak_memory() / 1e9
        self._start()
        return metrics


def _peak_memory() -> int:
    """Bytes: of the GPU where there is one, of the process else."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Figures:
    """Sums by draft position over batches, and their means; positions are counted from 1 for people."""

    def __init__(self, positions: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts = torch.zeros(positions, dtype=torch.long)

    def add(self, result: DrafterLoss) -> None:
        self._counts = self._counts.to(result.counts.device) + result.counts
        for name, sums in result.sums.items():
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def add_up(self) -> None:
        """Over all processes. One that saw no row has nothing to add: it learns the names from the others."""
        names = [list(self._sums)]
        if distributed.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(gathered, names[0])
            names = gathered
        self._counts = sum_over_processes(self._counts)
        for name in max(names, key=len):
            own = self._sums.get(name, torch.zeros(len(self._counts)))
            self._sums[name] = sum_over_processes(own)

    def means(self) -> dict[str, float]:
        """{"accuracy/position_1": ..., ...}."""
        counts = self._counts.clamp(min=1)
        return {
            f"{name}/position_{i + 1}": mean
            for name, sums in self._sums.items()
            for i, mean in enumerate((sums / counts).tolist())
        }


@torch.no_grad()
def validate(
    features_of: FeatureSource, drafter: Drafter, rows: list[PackedRow], batch_size: int
) -> dict[str, float]:
    """Figures by draft position, and the acceptance length and position rates that decoding will have.

    Each process looks at its share of the rows; the result is of all, on all.
    """
    drafter.eval()
    positions = drafter.draft_tokens
    figures = Figures(positions)
    count = AcceptanceCount.empty(positions)
    own = [rows[i] for i in share(len(rows))] or rows[:1]
    batches = list(DataLoader(own, batch_size=batch_size, collate_fn=collate))  # type: ignore[arg-type]
    mine = -(-len(share(len(rows))) // batch_size)
    for i in range(passes_of_each(len(rows), batch_size)):  # as many on each process: a sharded base needs all
        features = features_of(batches[min(i, len(batches) - 1)])
        if i < mine:
            result = drafter.loss(features, positions=positions, measure=True)
            figures.add(result)
            count.add_batch(features, result)
    drafter.train()
    figures.add_up()
    count = count.over_processes()
    rates = {f"rate/position_{i + 1}": rate for i, rate in enumerate(count.position_rates)}
    return {"acceptance_length": count.acceptance_length, **rates, **figures.means()}
