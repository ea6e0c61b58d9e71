import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from specdec import io
from specdec.errors import ConfigError, DataError
from specdec.targets.embedded import EmbeddedSettings, build, build_base
from specdec.targets.embedded.batches import IGNORED, Sample, batches, encode
from specdec.targets.embedded.chat import BOS, EOS, PAD
from specdec.targets.embedded.model import loss_sum, new_model
from specdec.targets.embedded.optimizers import orthogonal

TINY = EmbeddedSettings(
    vocab_size=320, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96,
    max_positions=512, max_tokens=128, steps=12, batch_tokens=512, held_out=0.1, checkpoint_seconds=-1.0,
    progress_seconds=-1.0,
)  # fmt: skip
ROOT = Path(__file__).parents[2]


def _row(i: int) -> dict[str, object]:
    turns = [
        {"from": "User", "value": f"What is `f{i}`?", "label": None},
        {"from": "Assistant", "value": f"`f{i}` is a function.\n\nIt adds {i} é.", "label": None},
    ]
    return {
        "system": "Be short." if i % 3 == 0 else "",
        "mask": "User",
        "dataset": "t",
        "conversations": turns,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    io.write_jsonl(path, (_row(i) for i in range(80)))
    return path


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "out"
    figures = build_base(data, out, TINY, out.parent / "work", lambda line: None)
    assert figures["loss"] < 5.7  # of an untrained model: ln(320) = 5.77
    assert figures["held_out_loss"] < 5.7
    assert figures["tokens"] > 1_000
    return out


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


def test_checkpoint_is_complete_and_loads(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]
    assert sorted(p.name for p in base.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]  # fmt: skip
    assert [p.name for p in base.parent.iterdir() if p.name.endswith(".part")] == []
    assert {p.stat().st_mode & 0o777 for p in base.iterdir()} == {0o644}


def test_generation_is_greedy_and_ends_at_eos(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    stored = json.loads((base / "generation_config.json").read_text())
    assert (stored["pad_token_id"], stored["bos_token_id"], stored["eos_token_id"]) == (0, 1, 2)
    assert not {"do_sample", "temperature", "top_p", "top_k"} & set(stored)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [PAD, BOS, EOS]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_same_settings_give_the_same_bytes(base: Path, data: Path, tmp_path: Path) -> None:
    build_base(data, tmp_path / "again", TINY, tmp_path / "work", lambda line: None)
    for file in base.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    other = dataclasses.replace(TINY, seed=18)
    build_base(data, tmp_path / "other", other, tmp_path / "work", lambda line: None)
    assert _weights(tmp_path / "other") != _weights(base)


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads({threads})
    from specdec.targets.embedded import EmbeddedSettings, build_base, training

    saves, save_file = 0, training.save_file

    def die_at_the_sixth(tensors, path, metadata):
        global saves
        saves += 1
        save_file(tensors, path, metadata=metadata)
        if saves == 6:
            os.truncate(path, 1000)
            os.kill(os.getpid(), signal.SIGKILL)

    training.save_file = die_at_the_sixth
    settings = {settings!r}
    build_base(Path({data!r}), Path({out!r}), settings, Path({work!r}), lambda line: None)
"""


def test_killed_while_it_writes_a_checkpoint_it_resumes_to_the_same_bytes(
    base: Path, data: Path, tmp_path: Path
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    code = KILLED.format(data=str(data), out=str(out), work=str(work), settings=TINY, threads=torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    lines: list[str] = []
    build_base(data, out, TINY, work, lines.append)
    assert "resuming at step 5/12" in lines
    assert _weights(out) == _weights(base)


def test_a_checkpoint_of_other_settings_is_not_resumed(base: Path, data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    other = dataclasses.replace(TINY, learning_rate=0.01, steps=2)
    (tmp_path / "checkpoint.safetensors").write_bytes((base.parent / "work" / "checkpoint.safetensors").read_bytes())
    build_base(data, tmp_path / "out", other, tmp_path, lines.append)
    assert not any("resuming" in line for line in lines)
    assert any(line.startswith("step 2/2, loss ") and line.endswith(" s left") for line in lines)


def test_a_checkpoint_of_other_code_is_not_resumed(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(Path(build.__file__).parent, tmp_path / "code")
    work = shutil.copytree(base.parent / "work", tmp_path / "work")
    monkeypatch.setattr(build, "__file__", str(package / "build.py"))
    lines: list[str] = []
    build_base(data, tmp_path / "same", TINY, work, lines.append)
    assert lines[0] == "resuming at step 12/12"
    with (package / "optimizers.py").open("a") as file:
        file.write("# other\n")
    build_base(data, tmp_path / "other", TINY, work, lines.append)
    assert sum("resuming" in line for line in lines) == 1


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi  there\n"},
    {"role": "assistant", "content": "Hé!"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]


def test_template_and_training_see_the_same_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == (
        "<|bos|><|system|>Be short.<|eos|><|user|>Hi  there\n<|eos|><|assistant|>Hé!<|eos|>"
        "<|user|>And?<|eos|><|assistant|>Bye.<|eos|>"
    )
    found = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    answers = dataclasses.replace(TINY, loss_on_prompts=False)
    (sample,) = encode(tokenizer, [CHAT], answers)
    assert sample.ids == found["input_ids"]
    assert [int(label != IGNORED) for label in sample.labels] == found["assistant_masks"]
    learnt = [label for label in sample.labels if label != IGNORED]
    assert tokenizer.decode(learnt) == "Hé!<|eos|>Bye.<|eos|>"
    (everything,) = encode(tokenizer, [CHAT], TINY)
    assert everything.labels[1:] == everything.ids[1:]


def test_template_opens_the_answer_and_refuses_unknown_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|assistant|>")
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_batches_hold_every_sample_once_an_epoch_within_the_budget() -> None:
    samples = [Sample([i] * (3 + i % 40), [i] * (3 + i % 40)) for i in range(300)]
    first = list(islice(batches(samples, 128, seed=1), 200))
    assert all(len(b) * max(len(s.ids) for s in b) <= 128 for b in first)
    seen: list[int] = []
    for batch in first:
        seen += [s.ids[0] for s in batch]
    assert sorted(seen[:300]) == list(range(300))
    assert first == list(islice(batches(samples, 128, seed=1), 200))
    assert first != list(islice(batches(samples, 128, seed=2), 200))


def test_padding_changes_no_loss() -> None:
    model = new_model(TINY)
    short, long = Sample([1, 7, 8, 2], [-100, 7, 8, 2]), Sample([1, 9, 9, 9, 9, 2], [-100, 9, 9, 9, 9, 2])
    apart = [loss_sum(model, [s]) for s in (short, long)]
    together = loss_sum(model, [short, long])
    assert together[1] == apart[0][1] + apart[1][1] == 8
    torch.testing.assert_close(together[0], apart[0][0] + apart[1][0])


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.5 < values.min() <= values.max() < 1.4


def test_rows_of_another_schema_are_refused(tmp_path: Path) -> None:
    robot = json.dumps({**_row(0), "conversations": [{"from": "Robot", "value": "x", "label": None}]})
    for content in ('{"text": "hello"}\n', "no json\n", "", "[1]\n", robot):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(DataError):
            build_base(tmp_path / "bad.jsonl", tmp_path / "out", TINY, tmp_path / "work", lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [{"num_heads": 3}, {"vocab_size": 100}, {"max_positions": 64}, {"steps": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="embedded base"):
        dataclasses.replace(TINY, **wrong)
