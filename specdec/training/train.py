"""One training run, from rows to the best drafter; it goes on where it was interrupted."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from specdec.config import TrainingSettings
from specdec.data.packing import PackedRow
from specdec.drafters import Drafter, load_drafter
from specdec.drafters.unrolled import Unrolled
from specdec.errors import LAUNCHER, ConfigError, DataError, ModelError
from specdec.io import write_text
from specdec.progress import Steps
from specdec.room import need_room, size_of
from specdec.targets import Target
from specdec.training.cache import FeatureCache
from specdec.training.checkpoints import MarkComplete, last_complete, load_best, step_of
from specdec.training.features import FeatureSource, compute_features
from specdec.training.interruption import EndWhenTold, Interruption, tell_first
from specdec.training.processes import is_main, shard_base, state
from specdec.training.sources import StateSource
from specdec.training.trainer import DrafterTrainer, LogFunction, Schedule, validate

LOG_STEPS = 10  # at most: a short run logs ten times
FINISHED = "finished"  # in a work folder, with the steps that were planned: early stopping leaves no other trace


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
    cache: Path,
    on_log: LogFunction,
    say: Callable[[str], None],
    source: StateSource | None = None,
) -> TrainingResult:
    """Trains `drafter` in place; afterwards it holds the weights with the best validation acceptance length.

    work: checkpoints, and nothing else's; a whole one that is there is gone on from, to the same weights that an
    undisturbed run would have. cache: where `features: cached` keeps the base's states, for other runs too. source:
    who computes them with `features: vllm`.
    Ctrl-C and SIGTERM end it behind the step it is in, with a checkpoint: see `Interruption`.
    Raises DataError when no row has an answer, ModelError when the loss is not finite, SpecdecError when the disk has
    no room for the checkpoints.
    """
    for name, rows in (("training", train_rows), ("validation", validation_rows)):
        if not any(row.loss_mask.any() for row in rows):
            raise DataError(f"no {name} row has an answer token within max_length: raise it, or look at the data")
    if isinstance(drafter, Unrolled):
        drafter.checkpointing = settings.gradient_checkpointing
    torch.set_float32_matmul_precision("highest" if settings.dtype == "float32" else "high")
    if settings.shard_base:
        shard_base(target)
    features_of = _feature_source(target, drafter, [*train_rows, *validation_rows], settings, cache, say, source)
    set_seed(settings.seed)
    planned = max(1, int(settings.epochs * -(-len(train_rows) // settings.rows_per_step)))
    finished = work / FINISHED
    with state().main_process_first():
        resume = last_complete(work, say) if work.exists() else None
    if is_main():
        _check_room(drafter, settings, planned, work)
    steps = step_of(resume) if resume else 0
    if resume:
        say(f"going on from {Path(resume).name}")
    shown = Steps(say, planned, steps)
    told = _Told(on_log, shown, planned, say)
    interruption = Interruption(_tell_first)
    ending = EndWhenTold(interruption, say)
    trainer = _trainer(target, drafter, features_of, train_rows, validation_rows, settings, planned, work, told)
    ended = finished.exists() and finished.read_text() == str(planned)
    if resume and (ended or steps >= planned):
        load_best(drafter, Path(resume))  # the Trainer would take one step more
    else:
        trainer.add_callback(ending)
        state().wait_for_everyone()  # from here on a signal reaches all in their steps
        with interruption, shown if is_main() else nullcontext():
            trainer.train(resume_from_checkpoint=resume)
            steps = trainer.state.global_step
            if is_main():
                write_text(finished, str(planned))
            ending.end_if_told()
    metrics = validate(features_of, drafter, validation_rows, settings.rows_per_pass)
    return TrainingResult(metrics, steps)


def _check_room(drafter: Drafter, settings: TrainingSettings, planned: int, work: Path) -> None:
    """Raises SpecdecError where the checkpoints will not fit: a full disk would end the training hours later."""
    weights = sum(p.numel() * p.element_size() for p in drafter.parameters() if p.requires_grad)
    # Beside those that are kept the best one, and the one that is being written; Adam has two moments a weight.
    count = min(settings.keep_checkpoints + 2, planned // settings.save_steps + 1)
    need_room(work, count * 3 * weights - size_of(work), f"{work}: {count} checkpoints at a time")


def _tell_first() -> None:
    if is_main() and LAUNCHER not in os.environ:  # which tells it itself
        tell_first()


def warm_start(drafter: Drafter, folder: Path) -> None:
    """Takes the weights of a trained drafter of the same method and sizes. Raises ModelError naming what differs."""
    trained = load_drafter(folder, drafter.target, trainable=True)
    if trained.method != drafter.method:
        raise ModelError(f"warm_start: {folder} is a {trained.method} drafter, and this is {drafter.method}")
    ours, theirs = drafter.checkpoint_config(), trained.checkpoint_config()
    if ours != theirs:
        names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
        raise ModelError(
            f"warm_start: the config.json of {folder} has another {', '.join(names[:4])} than the settings ask for"
        )
    drafter.load_state_dict(trained.state_dict())


def _feature_source(
    target: Target,
    drafter: Drafter,
    rows: list[PackedRow],
    settings: TrainingSettings,
    cache: Path,
    say: Callable[[str], None],
    source: StateSource | None,
) -> FeatureSource:
    if (settings.features == "vllm") != (source is not None):
        raise ConfigError(
            f"features is {settings.features}: `source` is for vllm (specdec.serving.states), and for it alone"
        )
    if settings.features == "online":
        return partial(compute_features, target, aux_layers=drafter.aux_layers)
    kept = FeatureCache.build(
        target,
        rows,
        drafter.aux_layers,
        cache,
        settings.cache_dtype,
        settings.cache_limit_gb,
        settings.rows_per_pass,
        say,
        source,
    )
    return kept.features


def _trainer(
    target: Target,
    drafter: Drafter,
    features_of: FeatureSource,
    train_rows: list[PackedRow],
    validation_rows: list[PackedRow],
    settings: TrainingSettings,
    steps: int,
    work: Path,
    told: "_Told",
) -> DrafterTrainer:
    passes = _passes(settings)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.rows_per_pass,
        per_device_eval_batch_size=settings.rows_per_pass,
        gradient_accumulation_steps=passes,
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
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        ddp_find_unused_parameters=False,
        metric_for_best_model="acceptance_length",
        greater_is_better=True,
        load_best_model_at_end=True,
        use_cpu=target.device.type == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    # Several GPUs are for several processes (torchrun); in one process the Trainer would split the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = DrafterTrainer(
        features_of,
        told,
        model=drafter,
        args=arguments,
        train_dataset=Schedule(train_rows, settings.rows_per_step, steps, settings.seed),
        eval_dataset=validation_rows,
        callbacks=[MarkComplete(settings.keep_checkpoints), *_stopping(settings)],
    )
    for printer in (PrinterCallback, ProgressCallback):  # one plain line of ours is enough
        trainer.remove_callback(printer)
    return trainer


def _stopping(settings: TrainingSettings) -> list[EarlyStoppingCallback]:
    patience = settings.early_stopping
    return [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []


def _passes(settings: TrainingSettings) -> int:
    """How many passes of each process make one step. Raises ConfigError when rows_per_step cannot be divided so."""
    processes = state().num_processes
    at_once = settings.rows_per_pass * processes
    if settings.rows_per_step % at_once:
        raise ConfigError(
            f"rows_per_step is {settings.rows_per_step}, no multiple of rows_per_pass "
            f"{settings.rows_per_pass} x {processes} processes"
        )
    return settings.rows_per_step // at_once


class _Told:
    """Passes figures on, and tells a person how far the run is."""

    def __init__(self, on_log: LogFunction, shown: Steps, steps: int, say: Callable[[str], None]):
        self._on_log, self._shown, self._steps, self._say = on_log, shown, steps, say

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        self._on_log(metrics, step)
        if "validation/acceptance_length" in metrics:
            self._say(f"step {step}: validation acceptance length {metrics['validation/acceptance_length']:.3f}")
        else:
            self._shown.show(step, f"step {step}/{self._steps}, loss {metrics['loss']:.3f}")
