"""The door to a base: its logits are the model's own, and what is no base is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specdec.decoding import generate
from specdec.errors import DataError, ModelError
from specdec.targets import Target, identify
from specdec.targets.fetch import copy_base, record_base
from specdec.targets.identity import compute_identity
from tests.targets.families import FAMILIES, WINDOW, write_family
from tests.tiny import write_base


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(tmp_path: Path, family: str) -> None:
    write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    ids = torch.randint(0, target.vocab_size, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = target.model(ids).logits
        ours = target.logits(target.forward(ids).hidden)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["phi-3-longrope", "phi-4-mini"])
def test_longrope_ends_where_its_angles_change(tmp_path: Path, family: str) -> None:
    write_family(tmp_path, family)
    target = Target.from_pretrained(tmp_path, device="cpu")
    assert (target.max_positions, target.text_config.max_position_embeddings) == (128, 256)
    prompt = list(range(6, 126))
    ids = torch.tensor([prompt])
    own = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert generate(target, None, prompt, 20).token_ids == own[0, 120:128].tolist()
    with pytest.raises(DataError, match="takes 1 to 127"):
        generate(target, None, list(range(6, 134)), 1)


def test_a_head_that_does_something_else_is_refused(target: Target) -> None:
    class Doubling(torch.nn.Module):
        def __init__(self, inner: Any):
            super().__init__()
            self.inner, self.base_model, self.config = inner, inner.base_model, inner.config
            self.generation_config = inner.generation_config

        def get_output_embeddings(self) -> Any:
            return self.inner.get_output_embeddings()

        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            output = self.inner(ids, use_cache=use_cache)
            output.logits = output.logits * 2
            return output

    with pytest.raises(ModelError, match="its logits are not those of its output layer"):
        Target(Doubling(target.model), target.tokenizer, target.identity, "odd").check_logits()


def test_identity_changes_with_each_part(base_folder: Path, tmp_path: Path) -> None:
    first = identify(base_folder)
    shutil.copytree(base_folder, tmp_path / "copy")
    assert identify(tmp_path / "copy") == first
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}")
    changed = identify(tmp_path / "copy")
    assert changed.chat_template != first.chat_template
    assert changed.weights == first.weights
    write_base(tmp_path / "other", seed=1)
    assert identify(tmp_path / "other").weights != first.weights
    assert identify(tmp_path / "other").tokenizer == first.tokenizer


def test_a_fetched_base_is_recorded(base_folder: Path, tmp_path: Path) -> None:
    copy_base(base_folder, tmp_path / "base", print)
    record_base(tmp_path / "base", "here", None, "tiny", print)
    record = json.loads((tmp_path / "base" / "specdec.json").read_text())
    assert record["identity"] == compute_identity(base_folder).as_dict()
    AutoModelForCausalLM.from_pretrained(tmp_path / "base")


def test_what_is_no_base_is_refused_and_leaves_nothing(base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"is no model: it has no config.json"):
        copy_base(tmp_path / "empty", tmp_path / "base", print)
    shutil.copytree(base_folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        copy_base(tmp_path / "pickled", tmp_path / "base", print)
    shutil.copytree(base_folder, tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        copy_base(tmp_path / "mute", tmp_path / "base", print)
    assert not (tmp_path / "base").exists()
    shutil.copytree(base_folder, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        Target.from_pretrained(tmp_path / "odd", device="cpu")


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def call(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return call


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def configure(**changes: Any) -> Callable[[Path], object]:
    def call(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return call


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if ".layers.1." in n]:
        del tensors[name]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (weights(lambda t: t.pop("lm_head.weight")), r"1 weights that .* are missing .*\(lm_head\.weight\)"),
    "no second layer": (weights(without_a_layer), r"9 weights .*\(model\.layers\.1\.input_layernorm\.weight, "),
    "a short head": (
        weights(lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:100].clone()})),
        "its weights have other shapes than its config.json says",
    ),
    "cut short": (
        write("model.safetensors", b"\x00" * 99),
        "its weights are cut short, damaged or a Git LFS pointer",
    ),
    "a pointer": (write("model.safetensors", POINTER), "its weights are cut short, damaged or a Git LFS pointer"),
    "a number as text": (configure(hidden_size="64"), "cannot be loaded as a causal language model"),
    "no heads": (configure(num_attention_heads=0), "cannot be loaded as a causal language model"),
    "tokenizer of nothing": (
        write("tokenizer.json", b'{"version": "1.0", "added_tokens": [], "model": {}}'),
        "holds no tokenizer that transformers can load",
    ),
    "settings of another kind": (write("tokenizer_config.json", b"[]"), "holds no tokenizer that transformers can"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_base_that_is_not_whole_is_refused(base_folder: Path, tmp_path: Path, case: str) -> None:
    damage, told = UNUSABLE[case]
    damage(shutil.copytree(base_folder, tmp_path / "base"))
    with pytest.raises(ModelError, match=told) as caught:
        Target.from_pretrained(tmp_path / "base", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_tied_head_need_not_be_there(base_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "base")
    weights(lambda t: t.pop("lm_head.weight"))(folder)
    configure(tie_word_embeddings=True)(folder)
    assert Target.from_pretrained(folder, device="cpu").vocab_size == 262


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for", "fails on a user's question"),
        ("{{ raise_exception('no') }}", r"fails on a user's question.*\(no\)"),
        ("{{ 1 + none }}", "fails on a user's question"),
        ("{{ messages.x.y.z }}", "fails on a user's question"),
        ("{{ 1 / 0 }}", "fails on a user's question"),
        ("{{ bos_token }}", "leaves out the user's question"),
    ],
)
def test_a_template_that_renders_no_question_is_refused(
    base_folder: Path, tmp_path: Path, template: str, told: str
) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "broken")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=told):
        copy_base(folder, tmp_path / "base", print)
    assert not (tmp_path / "base").exists()
    with pytest.raises(ModelError, match=told):
        record_base(folder, "here", None, "tiny", print)
    assert not (folder / "specdec.json").exists()
