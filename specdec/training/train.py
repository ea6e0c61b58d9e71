"""One training run, from rows to the best drafter; it goes on where it was interrupted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow
from specdec.drafters import Drafter
from specdec.errors import DataError
from specdec.targets import Target
from specdec.training.checkpoints import MarkComplete, last_complete, load_best, step_of
from specdec.training.trainer import DrafterTrainer, LogFunction, validate

LOG_STEPS = 10  # at most: a short run logs ten times


@dataclass(frozen=True)
class TrainingResult:
    """metrics: of the best checkpoint on the validation split. steps: optimizer steps of the whole run."""

    metrics: dict[str, float]
    steps: int


def train(
    target: Target,
    drafter: Drafter,
    train_rows: list[PackedRow],
    validation_rows: list[PackedRow],
    settings: TrainingSettings,
    work: Path,
    on_log: LogFunction,
    say: Callable[[str], None],
) -> TrainingResult:
    """Trains `drafter` in place; afterwards it holds the weights with the best validation acceptance length.

    work: checkpoints, and nothing else's; a whole one that is there is gone on from, to the same weights that an
    undisturbed run would have. Raises DataError when no row has an answer, ModelError when the loss is not finite.
    """
    for name, rows in (("training", train_rows), ("validation", validation_rows)):
        if not any(row.loss_mask.any() for row in rows):
            raise DataError(f"no {name} row has an answer token: look at data/synthetic/ and training.max_length")
    torch.set_float32_matmul_precision("highest" if settings.dtype == "float32" else "high")
    trainer = _trainer(target, drafter, train_rows, validation_rows, settings, work, on_log, say)
    resume = last_complete(work, say) if work.exists() else None
    if resume:
        say(f"going on from {Path(resume).name}")
    if resume and step_of(resume) >= trainer.args.max_steps:
        load_best(drafter, Path(resume))  # the Trainer would take one step more
    else:
        trainer.train(resume_from_checkpoint=resume)
    metrics = validate(target, drafter, validation_rows, settings.rows_per_step)
    return TrainingResult(metrics, trainer.args.max_steps)


def _trainer(
    target: Target,
    drafter: Drafter,
    train_rows: list[PackedRow],
    validation_rows: list[PackedRow],
    settings: TrainingSettings,
    work: Path,
    on_log: LogFunction,
    say: Callable[[str], None],
) -> DrafterTrainer:
    set_seed(settings.seed)
    steps = max(1, int(settings.epochs * -(-len(train_rows) // settings.rows_per_step)))
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.rows_per_step,
        per_device_eval_batch_size=settings.rows_per_step,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(settings.warmup_share * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        seed=settings.seed,
        save_steps=settings.save_steps,
        eval_strategy="steps",
        eval_steps=settings.save_steps,
        logging_steps=max(1, min(LOG_STEPS, steps // LOG_STEPS)),
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="acceptance_length",
        greater_is_better=True,
        use_cpu=target.device.type == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    # Several GPUs are for several processes (torchrun); in one process the Trainer would split the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = DrafterTrainer(
        target,
        _Told(on_log, steps, say),
        model=drafter,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        callbacks=[MarkComplete()],
    )
    for printer in (PrinterCallback, ProgressCallback):  # one plain line of ours is enough
        trainer.remove_callback(printer)
    return trainer


class _Told:
    """Passes figures on, and tells a person how far the run is, at most every three seconds."""

    def __init__(self, on_log: LogFunction, steps: int, say: Callable[[str], None]):
        self._on_log, self._steps, self._say = on_log, steps, say
        self._began: tuple[float, int] | None = None
        self._told = 0.0

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self._on_log(metrics, step)
        now = time.monotonic()
        if "validation/acceptance_length" in metrics:
            self._say(f"step {step}: validation acceptance length {metrics['validation/acceptance_length']:.3f}")
        elif now - self._told > 3:
            self._told = now
            self._say(f"step {step}/{self._steps}, loss {metrics['loss']:.3f}{self._left(now, step)}")

    def _left(self, now: float, step: int) -> str:
        if self._began is None:
            self._began = (now, step)
        seconds, done = now - self._began[0], step - self._began[1]
        return f", {seconds / done * (self._steps - step):.0f} s left" if done else ""
