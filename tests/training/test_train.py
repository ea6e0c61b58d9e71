"""Training: it learns what can be known, resumes to the bit, and says what is wrong."""

import importlib
import json
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
from specdec.drafters import Drafter, DraftState, Eagle3, Features, new_drafter
from specdec.errors import ConfigError, DataError, ModelError
from specdec.targets import Target
from specdec.training import TrainingResult, train, warm_start
from specdec.training.checkpoints import last_complete, step_of
from specdec.training.features import compute_features
from specdec.training.interruption import Interruption
from specdec.training.trainer import Schedule
from tests.settings import eagle3_settings, eagle_settings, medusa_settings
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
        work / "features",
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
    train(
        clear_target,
        drafter,
        rows(100),
        rows(8, 1),
        chosen.training,
        work,
        work,
        lambda m, s: log.append((m, s)),
        print,
    )
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
    state = DraftState()
    state.observe(torch.tensor([60, 70, 14, 15, 16, 17, 18]), clear_target.forward(ids).hidden[0], None)
    assert fitted[0].propose(state, 2).token_ids.tolist() == [19, 20]


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
    told: Any = print
    made = _trainer(
        target, new_drafter(target, settings()), compute_features, rows(40), rows(8), chosen, 24, tmp_path, told
    )
    arguments = made.args
    assert (arguments.max_steps, arguments.warmup_steps) == (24, 12)
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


@pytest.mark.parametrize(
    "moment", [pytest.param(4, marks=pytest.mark.soak), 12, pytest.param(20, marks=pytest.mark.soak)]
)
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
    monkeypatch.setattr(trainer, "validate", lambda *_: {"acceptance_length": next(lengths)})
    drafter, _ = fit(target, tmp_path, settings(epochs=3.0))
    best = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in drafter.state_dict().items())
    assert not all(torch.equal(best[name], tensor) for name, tensor in last_weights(tmp_path).items())


def test_the_last_checkpoints_stay_beside_the_best(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.training import trainer

    lengths = iter([1.2, 1.9, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1])
    monkeypatch.setattr(trainer, "validate", lambda *_: {"acceptance_length": next(lengths)})
    fit(target, tmp_path, settings(epochs=5.0, keep_checkpoints=1))
    kept = sorted(step_of(str(folder)) for folder in tmp_path.glob("checkpoint-*"))
    assert len(kept) == 2
    assert kept[0] == 8


def test_a_warm_start_keeps_the_vocabulary_of_its_weights(target: Target, tmp_path: Path) -> None:
    chosen = eagle3_settings({"draft_vocab_size": 20})
    first = new_drafter(target, chosen, torch.arange(target.vocab_size))
    first.save_pretrained(tmp_path / "champion")
    second = new_drafter(target, chosen, torch.arange(target.vocab_size).flip(0))
    warm_start(second, tmp_path / "champion")
    assert isinstance(second, Eagle3)
    assert second.vocabulary
    assert torch.equal(second.vocabulary.to_target, second.d2t + torch.arange(20))
    assert isinstance(first, Eagle3)
    assert torch.equal(second.d2t, first.d2t)


def test_a_torn_checkpoint_is_ignored(tmp_path: Path) -> None:
    for step in (4, 12, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    (tmp_path / "checkpoint-12" / "complete").unlink()
    said: list[str] = []
    assert last_complete(tmp_path, said.append) == str(tmp_path / "checkpoint-8")
    assert said == ["checkpoint-12 was torn by an interruption: ignored"]
    assert last_complete(tmp_path / "nothing", said.append) is None


METHODS = {
    "medusa": medusa_settings,
    "eagle": lambda **training: eagle_settings({"input_noise": 0.1}, **training),
    "eagle3": eagle3_settings,
}


@pytest.mark.parametrize("method", METHODS)
def test_cutting_a_step_up_changes_nothing(target: Target, tmp_path: Path, method: str) -> None:
    """Passes of one row and of two: their answers have unlike lengths, so means of means would differ."""
    results = []
    for name, rows_per_pass in (("whole", 4), ("cut", 1)):
        chosen = METHODS[method](epochs=1.0, rows_per_step=4, rows_per_pass=rows_per_pass, save_steps=99)
        drafter = new_drafter(target, chosen)
        if method == "eagle":
            drafter._noise = 0.0  # type: ignore[assignment]
        uneven = pack([Sequence(np.arange(6, 6 + n), np.arange(n) >= 4) for n in range(40, 56)], 64, 0)
        train(target, drafter, uneven, rows(2), chosen.training, tmp_path / name, tmp_path, lambda *_: None, print)
        results.append(drafter.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", ["online", "cached"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_to_the_same_bits(target: Target, tmp_path: Path, method: str, features: str) -> None:
    """Stopped by an error in a step, in a run with noise: the same weights as without it."""

    class Stop(Exception):
        pass

    def run(work: Path, stop_at: int | None) -> None:
        chosen = METHODS[method](epochs=2.0, save_steps=4, features=features, cache_dtype="bfloat16")
        torch.manual_seed(1)
        drafter = new_drafter(target, chosen)
        inner, taken = drafter.loss, []

        def loss(*arguments: Any, **keywords: Any) -> Any:
            taken.append(1)
            if len(taken) == stop_at:
                raise Stop
            return inner(*arguments, **keywords)

        drafter.loss = loss  # type: ignore[method-assign]
        train(target, drafter, rows(40), rows(4, 1), chosen.training, work, work, lambda *_: None, print)

    run(tmp_path / "whole", None)
    with pytest.raises(Stop):
        run(tmp_path / "cut", 9)
    run(tmp_path / "cut", None)
    whole, cut = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


class Told(Exception):
    """What a handler of signals raises that was there before the training."""


def _raising(_number: int, _frame: Any) -> None:
    raise Told


def signalled(target: Target, work: Path, at: int, *numbers: int) -> list[str]:
    """Trains to the end, or to where these signals end it, which come in the step `at`; returns what was said."""
    chosen = eagle_settings({"input_noise": 0.1}, epochs=3.0, save_steps=4)
    torch.manual_seed(1)
    drafter = new_drafter(target, chosen)
    inner, taken, said = drafter.loss, [], list[str]()

    def loss(*arguments: Any, **keywords: Any) -> Any:
        if drafter.training:
            taken.append(1)
            if len(taken) == at:
                for number in numbers:
                    os.kill(os.getpid(), number)
        return inner(*arguments, **keywords)

    drafter.loss = loss  # type: ignore[method-assign]
    before = {number: signal.signal(number, _raising) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        train(target, drafter, rows(40), rows(4, 1), chosen.training, work, work, lambda *_: None, said.append)
    except Told:
        said.append("ended")
    finally:
        kept = {signal.signal(number, handler) for number, handler in before.items()}
    assert kept == {_raising}, "the handlers that were there are there again"
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [6, 8])
def test_a_signal_ends_it_behind_its_step_and_it_goes_on_to_the_same_bits(
    target: Target, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, at: int
) -> None:
    """Between two checkpoints (6), and where one comes anyway (8)."""
    assert "ended" not in signalled(target, tmp_path / "whole", 0)
    assert signalled(target, tmp_path / "cut", at, number)[-2:] == [
        f"step {at}: ended as told, with a checkpoint",
        "ended",
    ]
    assert capfd.readouterr().err.splitlines() == [
        "specdec: told to end: training ends behind its step, with a checkpoint; once more ends it at once"
    ]
    assert last_complete(tmp_path / "cut", print) == str(tmp_path / "cut" / f"checkpoint-{at}")
    said = signalled(target, tmp_path / "cut", 0)
    assert said[0] == f"going on from checkpoint-{at}"
    assert "ended" not in said
    whole, cut = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    states = [
        json.loads((tmp_path / name / "checkpoint-15" / "trainer_state.json").read_text())
        for name in ("whole", "cut")
    ]
    assert states[0]["best_metric"] == states[1]["best_metric"]


def test_a_signal_in_the_last_step_ends_it_when_it_is_marked_as_finished(target: Target, tmp_path: Path) -> None:
    assert signalled(target, tmp_path, 15, signal.SIGTERM)[-1] == "ended"
    assert (tmp_path / "finished").read_text() == "15"
    assert signalled(target, tmp_path, 1, signal.SIGTERM) == ["going on from checkpoint-15"], "no step is left"


def test_a_second_signal_ends_it_at_once(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the same one twice in a moment is one: who started us has told us too."""
    said = signalled(target, tmp_path / "twice", 6, signal.SIGINT, signal.SIGTERM)
    assert said[-2:] == ["step 6: ended as told, with a checkpoint", "ended"]
    monkeypatch.setattr("specdec.training.interruption._SAME", -1.0)
    said = signalled(target, tmp_path / "again", 6, signal.SIGINT, signal.SIGTERM)
    assert said[-1] == "ended"
    assert "step 6" not in said[-2]
    assert last_complete(tmp_path / "again", print) == str(tmp_path / "again" / "checkpoint-4")


def test_an_ignored_signal_stays_ignored(target: Target, tmp_path: Path) -> None:
    """Of a command that a shell runs in the background, Ctrl-C is none of its business."""
    with Interruption(lambda: None):
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(lambda: None) as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.told
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_epoch_sees_every_row_once() -> None:
    made = rows(40)
    order = Schedule(made, 4, 3 * -(-len(made) // 4), 5)._order
    whole = -(-len(made) // 4) * 4
    for epoch in range(3):
        part = order[epoch * whole : (epoch + 1) * whole]
        assert sorted(part[: len(made)]) == list(range(len(made)))
        assert part[len(made) :] == part[: whole - len(made)]
    assert order[:whole] != order[whole : 2 * whole]


def test_early_stopping_ends_a_run_for_good(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec.training import trainer

    lengths = iter([1.2, 1.9, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1])
    monkeypatch.setattr(trainer, "validate", lambda *_: {"acceptance_length": next(lengths)})
    chosen = settings(epochs=9.0, early_stopping=2)
    drafter, result = fit(target, tmp_path, chosen)
    assert result.steps == 16
    best = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in drafter.state_dict().items())
    again, same = fit(target, tmp_path, chosen)
    assert same.steps == 16
    assert all(torch.equal(tensor, best[name]) for name, tensor in again.state_dict().items())


def test_a_warm_start_goes_on_from_another_drafter(target: Target, tmp_path: Path) -> None:
    first, _ = fit(target, tmp_path / "first", settings(epochs=4.0))
    first.save_pretrained(tmp_path / "champion")
    second = new_drafter(target, settings())
    warm_start(second, tmp_path / "champion")
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    other = new_drafter(target, medusa_settings(num_layers=2))
    with pytest.raises(ModelError, match=r"warm_start: the config.json of .*champion has another num_hidden_layers"):
        warm_start(other, tmp_path / "champion")
    with pytest.raises(ModelError, match="champion is a medusa drafter, and this is eagle3"):
        warm_start(new_drafter(target, eagle3_settings()), tmp_path / "champion")


def test_states_that_are_not_finite_name_their_rows(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **keywords: Any) -> Features:
        features = compute_features(*arguments, **keywords)
        features.hidden[1, 3] = float("nan")
        return features

    monkeypatch.setattr(importlib.import_module("specdec.training.train"), "compute_features", broken)
    with pytest.raises(ModelError, match=r"states are not finite in step 1, in 1 packed rows .*tokens \[\d+, \d+"):
        fit(target, tmp_path, settings())


def test_what_a_step_cannot_be_cut_into_is_refused(target: Target, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows_per_step is 4, no multiple of rows_per_pass 3 x 1 processes"):
        fit(target, tmp_path, settings(rows_per_step=4, rows_per_pass=3))


def test_rows_without_an_answer_are_refused(target: Target, tmp_path: Path) -> None:
    mute = pack([Sequence(np.arange(6, 20), np.zeros(14, bool))], 32, 0)
    drafter = new_drafter(target, settings())
    with pytest.raises(DataError, match="no training row has an answer"):
        train(target, drafter, mute, rows(2), settings().training, tmp_path, tmp_path, lambda *_: None, print)


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(target: Target, tmp_path: Path) -> None:
    fit(target, tmp_path, settings(epochs=1.0))
    kept = last_complete(tmp_path, print)
    assert kept
    weights = load_file(Path(kept) / "model.safetensors")
    save_file({n: t * float("nan") for n, t in weights.items()}, Path(kept) / "model.safetensors")
    with pytest.raises(ModelError, match="the loss is nan at step"):
        fit(target, tmp_path, settings(epochs=9.0))
    assert last_complete(tmp_path, print) == kept
