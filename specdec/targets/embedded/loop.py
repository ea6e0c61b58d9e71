"""The training loop: steps, and now and then a checkpoint and a line of progress."""

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from specdec.targets.embedded.batches import Sample, batches
from specdec.targets.embedded.model import loss_sum
from specdec.targets.embedded.optimizers import schedule
from specdec.targets.embedded.settings import EmbeddedSettings
from specdec.targets.embedded.training import Training

Progress = Callable[[str], None]


def train(
    t: Training, samples: list[Sample], settings: EmbeddedSettings, checkpoint: Path, progress: Progress
) -> None:
    """All steps that are left, from ``checkpoint`` on where it belongs to this training."""
    if t.load(checkpoint):
        progress(f"resuming at step {t.step}/{settings.steps}")
    saving, telling = _Every(settings.checkpoint_seconds), _Every(settings.progress_seconds)
    tokens, before, start = t.tokens, t.seconds, time.monotonic()
    for batch in islice(batches(samples, settings.batch_tokens, settings.seed), t.step, settings.steps):
        _step(t, batch, schedule(t.step, settings))
        passed = time.monotonic() - start
        t.seconds = before + passed
        last = t.step == settings.steps
        if telling.due() or last:
            progress(_line(t, settings, (t.tokens - tokens) / passed))
        if saving.due() or last:
            t.save(checkpoint)


class _Every:
    """Tells when so many seconds have passed since it last did."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.since = seconds, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.since <= self.seconds:
            return False
        self.since = now
        return True


def _step(t: Training, batch: list[Sample], factor: float) -> None:
    total, count = loss_sum(t.model, batch)
    (total / count).backward()
    for optimizer in t.optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
        optimizer.step()
        optimizer.zero_grad()
    mean = total.item() / count
    t.loss = mean if t.step == 0 else 0.95 * t.loss + 0.05 * mean
    t.step += 1
    t.tokens += count


def _line(t: Training, settings: EmbeddedSettings, speed: float) -> str:
    left = (settings.steps - t.step) * t.tokens / t.step / speed
    return f"step {t.step}/{settings.steps}, loss {t.loss:.3f}, {speed:.0f} tokens/s, {left:.0f} s left"
