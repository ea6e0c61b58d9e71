"""Training: it learns what can be known, resumes to the bit, and says what is wrong."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.data.packing import PackedRow, Sequence, pack
from specdec.drafters import Drafter, new_drafter
from specdec.errors import DataError, ModelError
from specdec.targets import Target
from specdec.training import TrainingResult, train
from specdec.training.checkpoints import last_complete
from tests.settings import medusa_settings
from tests.tiny import write_base

Log = list[tuple[dict[str, float], int]]


def counting(prompt: np.ndarray) -> np.ndarray:
    """21 22 23 ... behind a prompt that ends with 20: what comes next is known from what is there."""
    return np.arange(prompt[-1] + 1, prompt[-1] + 13)


def rows(count: int, seed: int = 0) -> list[PackedRow]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = np.append(rng.integers(6, 200, 3), rng.integers(10, 18))
        ids = np.concatenate([prompt, counting(prompt)])
        made.append(Sequence(ids, np.arange(len(ids)) >= len(prompt)))
    return pack(made, 64, 0)


def settings(**training: Any) -> Any:
    return medusa_settings(**{"save_steps": 4, "seed": 3, **training})


def fit(target: Target, work: Path, chosen: Any, log: Log | None = None) -> tuple[Drafter, TrainingResult]:
    drafter = new_drafter(target, chosen)
    taken = [] if log is None else log
    result = train(
        target,
        drafter,
        rows(40),
        rows(8, 1),
        chosen.training,
        work,
        lambda metrics, step: taken.append((metrics, step)),
        print,
    )
    return drafter, result


@pytest.fixture(scope="module")
def clear_target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """A base whose hidden states show the token they have read: small weights leave the embeddings on top."""
    folder = tmp_path_factory.mktemp("clear")
    write_base(folder, initializer_range=0.02)
    return Target.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def fitted(clear_target: Target, tmp_path_factory: pytest.TempPathFactory) -> tuple[Drafter, Log]:
    """Heads that have seen counting answers."""
    log: Log = []
    chosen = settings(epochs=20.0, learning_rate=3e-3, rows_per_step=4, save_steps=200)
    drafter = new_drafter(clear_target, chosen)
    work = tmp_path_factory.mktemp("fitted")
    train(clear_target, drafter, rows(100), rows(8, 1), chosen.training, work, lambda m, s: log.append((m, s)), print)
    return drafter, log


def test_it_learns_what_can_be_known(fitted: tuple[Drafter, Log]) -> None:
    losses = [metrics["loss"] for metrics, _ in fitted[1] if "loss" in metrics]
    assert losses[-1] < losses[0] / 4
    last = [metrics for metrics, _ in fitted[1] if "validation/acceptance_length" in metrics][-1]
    assert last["validation/accuracy/position_1"] > 0.99
    assert last["validation/accuracy/position_2"] > 0.99
    assert last["validation/acceptance_length"] > 2.7  # 3, but for the answers' last steps


def test_heads_draft_the_tokens_behind_the_newest(clear_target: Target, fitted: tuple[Drafter, Log]) -> None:
    """Of the answer 15 16 17 18 ..., after reading up to 17 (the newest is 18), 19 and 20 are to be drafted."""
    ids = torch.tensor([[50, 60, 70, 14, 15, 16, 17]])
    hidden = clear_target.forward(ids).hidden[0, -1]
    assert fitted[0].propose(hidden, 2).token_ids.tolist() == [19, 20]


def test_every_setting_reaches_the_trainer(target: Target, tmp_path: Path) -> None:
    from specdec.training.train import _trainer

    chosen = settings(
        epochs=3.0,
        learning_rate=7e-4,
        warmup_share=0.5,
        weight_decay=0.1,
        max_grad_norm=0.3,
        dtype="bfloat16",
        seed=9,
    ).training
    made = _trainer(target, new_drafter(target, settings()), rows(40), rows(8), chosen, tmp_path, print, print)
    arguments = made.args
    assert arguments.max_steps == 3 * -(-len(rows(40)) // 2)
    assert arguments.warmup_steps == arguments.max_steps // 2
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_grad_norm) == (7e-4, 0.1, 0.3)
    assert (arguments.bf16, arguments.seed, arguments.save_steps) == (True, 9, 4)
    assert arguments.n_gpu <= 1


def test_the_last_step_is_validated(target: Target, tmp_path: Path) -> None:
    log: Log = []
    _, result = fit(target, tmp_path, settings(save_steps=4, epochs=2.0), log)
    validated = [step for metrics, step in log if "validation/acceptance_length" in metrics]
    assert result.steps % 4 != 0
    assert validated == [*range(4, result.steps, 4), result.steps]


def _train_until_killed(base: str, work: str) -> None:
    torch.set_num_threads(2)
    fit(Target.from_pretrained(base, device="cpu"), Path(work), settings(epochs=6.0))


def last_weights(work: Path) -> dict[str, Tensor]:
    """Of the last step, whichever step was the best."""
    last = last_complete(work, print)
    assert last
    return load_file(Path(last) / "model.safetensors")


@pytest.mark.parametrize("moment", [4, 12, 20])
def test_killed_and_resumed_gives_the_same_bits(
    target: Target, base_folder: Path, tmp_path: Path, moment: int
) -> None:
    _, result = fit(target, tmp_path / "whole", settings(epochs=6.0))
    process = multiprocessing.get_context("spawn").Process(
        target=_train_until_killed, args=(str(base_folder), str(tmp_path / "cut"))
    )
    process.start()
    reached = tmp_path / "cut" / f"checkpoint-{moment}" / "complete"
    while process.is_alive() and not reached.exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _, again = fit(target, tmp_path / "cut", settings(epochs=6.0))
    assert again == result
    whole, cut = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("epochs", [2.0, 1.5])
def test_a_finished_training_is_not_trained_further(target: Target, tmp_path: Path, epochs: float) -> None:
    drafter, result = fit(target, tmp_path / "a", settings(epochs=epochs))
    (tmp_path / "a").rename(tmp_path / "b")  # a checkpoint is found by its name, wherever the folder is
    again, same = fit(target, tmp_path / "b", settings(epochs=epochs))
    assert same == result
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in drafter.state_dict().items())
    assert max(int(f.name.split("-")[1]) for f in (tmp_path / "b").glob("checkpoint-*")) == result.steps


def test_the_best_checkpoint_wins(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation figures are faked so that the second checkpoint is best: its weights are what comes out."""
    from specdec.training import trainer

    lengths = iter([1.2, 1.9, 1.1, 1.1, 1.1, 1.1])
    monkeypatch.setattr(trainer, "validate", lambda *_: {"loss": 0.0, "acceptance_length": next(lengths)})
    drafter, _ = fit(target, tmp_path, settings(epochs=3.0))
    best = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in drafter.state_dict().items())
    assert not all(torch.equal(best[name], tensor) for name, tensor in last_weights(tmp_path).items())


def test_a_torn_checkpoint_is_ignored(tmp_path: Path) -> None:
    for step in (4, 12, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    (tmp_path / "checkpoint-12" / "complete").unlink()
    said: list[str] = []
    assert last_complete(tmp_path, said.append) == str(tmp_path / "checkpoint-8")
    assert said == ["checkpoint-12 was torn by an interruption: ignored"]
    assert last_complete(tmp_path / "nothing", said.append) is None


def test_rows_without_an_answer_are_refused(target: Target, tmp_path: Path) -> None:
    mute = pack([Sequence(np.arange(6, 20), np.zeros(14, bool))], 32, 0)
    drafter = new_drafter(target, settings())
    with pytest.raises(DataError, match="no training row has an answer"):
        train(target, drafter, mute, rows(2), settings().training, tmp_path, lambda *_: None, print)


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(target: Target, tmp_path: Path) -> None:
    fit(target, tmp_path, settings(epochs=1.0))
    kept = last_complete(tmp_path, print)
    assert kept
    weights = load_file(Path(kept) / "model.safetensors")
    save_file({n: t * float("nan") for n, t in weights.items()}, Path(kept) / "model.safetensors")
    with pytest.raises(ModelError, match="the loss is nan at step"):
        fit(target, tmp_path, settings(epochs=9.0))
    assert last_complete(tmp_path, print) == kept
