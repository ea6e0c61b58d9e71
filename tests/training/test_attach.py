"""A drafter on one's own model, trained by one's own Trainer: what it learns is what the pipeline would teach it."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, LlamaForCausalLM, Trainer, TrainingArguments

import specdec
from specdec.data.packing import Sequence, pack
from specdec.decoding import generate
from specdec.drafters import load_drafter
from specdec.errors import ConfigError, ModelError
from specdec.targets import Target
from specdec.training.features import collate, compute_features
from tests.tiny import write_base

ROOT = Path(__file__).resolve().parents[2]
CONFIGS: dict[str, dict[str, Any]] = {
    "medusa": {"num_heads": 3},
    "eagle": {"input_noise": 0.0, "unroll_steps": 2},
    "eagle3": {"unroll_steps": 2},
}
every_method = pytest.mark.parametrize("method", CONFIGS)


@pytest.fixture
def base(base_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(base_folder)


def attached(base: Any, method: str, **changes: Any) -> specdec.Attached:
    """With weights of which none is idle."""
    torch.manual_seed(0)
    model = specdec.attach(base, method, {**CONFIGS[method], **changes})
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def conversations(count: int = 8, seed: int = 0) -> list[Sequence]:
    """Of unlike lengths, some with two answers."""
    rng = np.random.default_rng(seed)
    made = []
    for i, length in enumerate(rng.integers(14, 30, count)):
        places = np.arange(length)
        made.append(
            Sequence(rng.integers(6, 200, length), (places >= 9) | (places >= 3) & (places < 7) & (i % 2 == 0))
        )
    return made


def examples(made: list[Sequence] | None = None) -> list[dict[str, list[int]]]:
    """Rows as any fine-tuning has them."""
    rows = conversations() if made is None else made
    return [
        {"input_ids": s.token_ids.tolist(), "labels": np.where(s.loss_mask, s.token_ids, -100).tolist()} for s in rows
    ]


def padded(made: list[Sequence], length: int = 40, left: bool = False) -> dict[str, Tensor]:
    """input_ids, labels, attention_mask: [B, length]."""
    batch = {name: torch.zeros(len(made), length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(made), length), -100)
    for i, s in enumerate(made):
        place = slice(length - len(s), length) if left else slice(0, len(s))
        batch["input_ids"][i, place] = ids = torch.from_numpy(s.token_ids)
        batch["labels"][i, place] = torch.where(torch.from_numpy(s.loss_mask), ids, -100)
        batch["attention_mask"][i, place] = 1
    return batch


def result(model: specdec.Attached, batch: dict[str, Tensor]) -> list[Tensor]:
    """The loss and the gradients of every weight."""
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def trainer(model: Any, folder: Path, **changes: Any) -> Trainer:
    chosen: dict[str, Any] = {
        "max_steps": 6,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**chosen, **changes}),
        train_dataset=examples(),
        eval_dataset=examples(conversations(4, 1)),
        data_collator=DataCollatorForSeq2Seq(model.drafter.target.tokenizer),
    )


# The loss


@every_method
def test_the_loss_is_the_packed_pipelines(base: Any, method: str) -> None:
    """The very conversations, packed into rows beside each other and padded into rows of their own."""
    model, made = attached(base, method), conversations()
    rows = collate(pack(made, 64, 0))
    assert len(rows["token_ids"]) < len(made)
    drafter = model.drafter
    drafter.zero_grad()
    wanted = drafter(compute_features(drafter.target, rows, drafter.aux_layers)).loss
    wanted.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    for left in (False, True):
        found = result(model, padded(made, left=left))
        for a, b in zip(found, [wanted.detach(), *gradients], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@every_method
@pytest.mark.parametrize("left", [False, True])
def test_padding_and_labels_have_no_influence(base: Any, method: str, left: bool) -> None:
    """To the bit: padding may hold any token, and a label says no more than whether the base answered there."""
    model, batch = attached(base, method), padded(conversations(), left=left)
    wanted = result(model, batch)
    ids = torch.where(batch["attention_mask"].bool(), batch["input_ids"], torch.randint(6, 200, (8, 40)))
    assert same(result(model, {**batch, "input_ids": ids}), wanted)
    labels = torch.where(batch["attention_mask"].bool(), batch["labels"], ids)
    assert same(result(model, {**batch, "labels": labels}), wanted), "padding is no answer, whatever its label"
    labels = torch.where(batch["labels"] != -100, 7, -100)
    assert same(result(model, {**batch, "labels": labels}), wanted)


@every_method
def test_what_is_an_answer_has_influence(base: Any, method: str) -> None:
    model, batch = attached(base, method), padded(conversations())
    wanted = result(model, batch)[0]
    fewer, ids = batch["labels"].clone(), batch["input_ids"].clone()
    fewer[0, 12:] = -100
    assert result(model, {**batch, "labels": fewer})[0] != wanted
    ids[0, 12] += 1
    assert result(model, {**batch, "input_ids": ids})[0] != wanted


@every_method
def test_without_labels_all_is_answer(base: Any, method: str) -> None:
    model, batch = attached(base, method), padded(conversations())
    every = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    wanted = result(model, {**batch, "labels": every})
    assert same(result(model, {n: batch[n] for n in ("input_ids", "attention_mask")}), wanted)
    whole = {"input_ids": batch["input_ids"][:, :14]}
    assert same(result(model, whole), result(model, {**whole, "attention_mask": torch.ones(8, 14)}))


@every_method
def test_a_batch_without_answers_teaches_nothing(base: Any, method: str) -> None:
    model, batch = attached(base, method), padded(conversations())
    found = result(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert len(found) > 1
    assert not any(tensor.any() for tensor in found)


# The user's Trainer


@every_method
def test_a_trainer_trains_the_drafter_alone(base: Any, method: str, tmp_path: Path) -> None:
    before = copy.deepcopy(base.state_dict())
    model = attached(base, method)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    running = trainer(model, tmp_path)
    running.train()
    losses = [entry["eval_loss"] for entry in running.state.log_history if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(weight.requires_grad for weight in base.parameters())
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])}
    assert moved == weights.keys()
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert saved.keys() == {f"drafter.{name}" for name in model.drafter.state_dict()} == model.state_dict().keys()
    assert not base.training


@every_method
def test_a_trainers_checkpoint_is_gone_on_from_to_the_same_bits(method: str, base: Any, tmp_path: Path) -> None:
    whole, cut = attached(base, method, **NOISY.get(method, {})), attached(base, method, **NOISY.get(method, {}))
    trainer(whole, tmp_path / "whole").train()
    trainer(cut, tmp_path / "cut").train()
    again = attached(base, method, **NOISY.get(method, {}))
    trainer(again, tmp_path / "cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


NOISY = {"eagle": {"input_noise": 0.1}}


def test_steps_of_several_passes(base: Any, tmp_path: Path) -> None:
    model = attached(base, "medusa")
    running = trainer(model, tmp_path, gradient_accumulation_steps=2, max_steps=2)
    running.train()
    losses = [entry["loss"] for entry in running.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(running.evaluate()["eval_loss"], rel=0.5), "a mean over passes, not their sum"


def test_to_takes_the_base_along(base: Any) -> None:
    model = attached(base, "eagle").to(torch.float64)
    assert {weight.dtype for weight in [*base.parameters(), *model.parameters()]} == {torch.float64}
    assert torch.isfinite(model(**padded(conversations()))["loss"])


# The folder


@every_method
def test_the_folder_is_a_drafters(base: Any, base_folder: Path, target: Target, method: str, tmp_path: Path) -> None:
    model = attached(base, method)
    model.save_pretrained(tmp_path / "drafter", {"note": "mine"})
    record = json.loads((tmp_path / "drafter" / "specdec.json").read_text())
    assert (record["method"], record["note"]) == (method, "mine")
    loaded = load_drafter(tmp_path / "drafter", target)  # the base's own folder, without a model in memory
    assert loaded.draft_tokens == 3
    prompt = [1, 4, 70, 71, 2, 5]
    assert generate(target, loaded, prompt, 30).token_ids == generate(target, None, prompt, 30).token_ids


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_attached_again(base_folder: Path, method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every bit of the weights, below a base of fewer bits too."""
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=dtype)
    model = attached(base, method)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "first")
    again = specdec.Attached.from_pretrained(tmp_path / "first", base)
    again.save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json", "specdec.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert all(weight.requires_grad and weight.dtype is torch.float32 for weight in again.parameters())
    assert again.training
    found = result(again, padded(conversations()))
    assert torch.isfinite(found[0])
    assert len(found) == 1 + len(list(again.parameters()))


def test_a_drafter_of_another_base_is_refused(base: Any, tmp_path: Path) -> None:
    write_base(tmp_path / "other", seed=1)
    other = LlamaForCausalLM.from_pretrained(tmp_path / "other")
    attached(base, "medusa").save_pretrained(tmp_path / "drafter")
    with pytest.raises(ModelError, match=r"was trained for another base: its weights \(\w{12}\) differ"):
        specdec.Attached.from_pretrained(tmp_path / "drafter", other)
    assert specdec.Attached.from_pretrained(tmp_path / "drafter", other, force=True).drafter.target.model is other
    with pytest.raises(ModelError, match="is no drafter"):
        specdec.Attached.from_pretrained(tmp_path / "nothing", base)


# What goes in


def test_a_model_without_a_folder_needs_its_tokenizer(base: Any, target: Target, tmp_path: Path) -> None:
    def fresh(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = copy.deepcopy(base.config)
        config._name_or_path = str(tmp_path / "nowhere")
        return LlamaForCausalLM(config)

    with pytest.raises(ModelError, match="pass its tokenizer too"):
        specdec.attach(fresh(0), "medusa")
    model = specdec.attach(fresh(0), "medusa", tokenizer=target.tokenizer)
    model.save_pretrained(tmp_path / "drafter")
    again = specdec.Attached.from_pretrained(tmp_path / "drafter", fresh(0), target.tokenizer)
    assert same(list(again.parameters()), list(model.parameters()))
    with pytest.raises(ModelError, match="for another base: its weights"):
        specdec.Attached.from_pretrained(tmp_path / "drafter", fresh(1), target.tokenizer)


@pytest.mark.parametrize(
    ("method", "config", "says"),
    [
        ("hydra", {}, "method 'hydra': choose one of medusa, eagle, eagle3"),
        ("medusa", {"heads": 2}, "config: heads: unknown key; allowed here: head_decay, loss, method, num_heads"),
        ("medusa", {"num_heads": 0}, "config: num_heads: input should be greater than 0 (it is 0)"),
        ("medusa", {"method": "eagle"}, "config: method: input should be 'medusa' (it is 'eagle')"),
        ("eagle", {"dimensions": {"hidden_size": 32}}, "hidden_size must be null"),
        ("eagle3", {"aux_layers": [0, 9]}, "aux_layers [0, 9]: tiny-llama has layers 1 to 2"),
        ("eagle3", {"dimensions": {"num_attention_heads": 3}}, "dimensions: "),
        ("eagle3", {"draft_vocab_size": 999}, "draft_vocab_size is 999, and tiny-llama has 262 tokens"),
        ("eagle3", {"draft_vocab_size": 40}, "draft_vocab_size needs the counts of answer tokens"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    base: Any, method: str, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        specdec.attach(base, method, config)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_counts_choose_the_draft_vocabulary(base: Any) -> None:
    counts = torch.zeros(262, dtype=torch.long)
    counts[100:139] = 5
    model = specdec.attach(base, "eagle3", {"draft_vocab_size": 40}, token_counts=counts)
    assert model.drafter.state_dict()["t2d"].nonzero().squeeze(-1).tolist() == [2, *range(100, 139)]


def test_defaults_are_enough(base: Any) -> None:
    model = specdec.attach(base, "medusa")
    assert model.drafter.draft_tokens == 2
    assert model(**padded(conversations()))["loss"].requires_grad


def test_the_package_alone_does_not_import_torch() -> None:
    code = "import sys, specdec; print(specdec.__all__, 'torch' in sys.modules, 'transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split("]") == ["['Attached', 'attach'", " False False\n"], ran.stderr
    with pytest.raises(AttributeError, match="no attribute 'detach'"):
        _ = specdec.detach
