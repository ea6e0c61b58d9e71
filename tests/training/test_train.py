"""Training: it learns what can be known, resumes to the bit, and says what is wrong."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec.config import MedusaSettings
from specdec.data.packing import PackedRow, Sequence, pack
from specdec.drafters import Drafter, new_drafter
from specdec.errors import DataError, ModelError
from specdec.targets import Target
from specdec.training import TrainingResult, train
from specdec.training.checkpoints import last_complete


def settings(**training: object) -> MedusaSettings:
    defaults = {
        "epochs": 2.0, "learning_rate": 1e-3, "max_length": 64, "rows_per_step": 2, "save_steps": 4, "log_steps": 2,
        "seed": 3,
    }  # fmt: skip
    return MedusaSettings.model_validate(
        {"method": "medusa", "num_heads": 2, "num_layers": 1, "training": defaults | training}
    )


def rows(count: int, seed: int = 0) -> list[PackedRow]:
    """Answers that count upwards: 30 31 32 ... after a random prompt."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        start, length = int(rng.integers(10, 150)), int(rng.integers(8, 20))
        ids = np.concatenate([rng.integers(6, 200, 5), np.arange(start, start + length)])
        made.append(Sequence(ids, np.arange(len(ids)) >= 5))
    return pack(made, 64, 0)


def fit(
    target: Target, work: Path, chosen: MedusaSettings, log: list[dict[str, float]] | None = None
) -> tuple[Drafter, TrainingResult]:
    drafter = new_drafter(target, chosen)
    taken = [] if log is None else log
    result = train(target, drafter, rows(40), rows(8, 1), chosen.training, work, lambda m, _: taken.append(m), print)
    return drafter, result


def test_it_learns_what_can_be_known(target: Target, tmp_path: Path) -> None:
    log: list[dict[str, float]] = []
    _, result = fit(target, tmp_path, settings(epochs=60.0, learning_rate=3e-3, save_steps=150), log)
    losses = [m["loss"] for m in log if "loss" in m]
    assert losses[-1] < losses[0] / 4
    assert result.metrics["accuracy/position_1"] > 0.9
    assert result.metrics["accuracy/position_2"] > 0.9
    assert result.metrics["acceptance_length"] > 2.5


def test_targets_are_the_right_tokens(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same budget with answers shifted by one cannot reach the agreement (the answers are random walks)."""
    chosen = settings(epochs=60.0, learning_rate=3e-3, save_steps=150)
    drafter, _ = fit(target, tmp_path, chosen)
    row = rows(1, 5)[0]
    ids = torch.tensor(row.token_ids[None])
    hidden = target.forward(ids, torch.tensor(row.positions[None])).hidden[0]
    place = 8  # inside the answer: tokens place+1 = newest, place+2 and place+3 are to be drafted
    proposed = drafter.propose(hidden[place], 2).token_ids.tolist()
    assert proposed == row.token_ids[place + 2 : place + 4].tolist()


def _train_until_killed(base: str, work: str) -> None:
    torch.set_num_threads(2)
    fit(Target.from_pretrained(base, device="cpu"), Path(work), settings(epochs=6.0))


@pytest.mark.parametrize("moment", [5, 9, 14])
def test_killed_and_resumed_gives_the_same_bits(
    target: Target, base_folder: Path, tmp_path: Path, moment: int
) -> None:
    whole, result = fit(target, tmp_path / "whole", settings(epochs=6.0))
    process = multiprocessing.get_context("spawn").Process(
        target=_train_until_killed, args=(str(base_folder), str(tmp_path / "cut"))
    )
    process.start()
    last = tmp_path / "cut" / f"checkpoint-{moment // 4 * 4}"
    while process.is_alive() and not (last / "complete").exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    resumed, again = fit(target, tmp_path / "cut", settings(epochs=6.0))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert again == result


def test_the_best_checkpoint_wins(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation figures are faked so that the second checkpoint is best: its weights are what comes out."""
    from specdec.training import trainer

    lengths = iter([1.2, 1.9, 1.1, 1.1, 1.1, 1.1])
    monkeypatch.setattr(trainer, "validate", lambda *_: {"loss": 0.0, "acceptance_length": next(lengths)})
    drafter, _ = fit(target, tmp_path, settings())
    best = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, best[name])


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
