"""What vLLM would misread is found, for what it is; what is right passes, on bases of several families."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.drafters import Drafter, Medusa
from specdec.drafters.deployable import BaseFacts
from specdec.drafters.deployable.folder import base_facts, check_folder
from specdec.errors import ModelError
from specdec.targets import Target
from tests.drafters.examples import new, scattered
from tests.settings import eagle3_settings, eagle_settings
from tests.settings import medusa_settings as medusa
from tests.targets.families import write_family
from tests.tiny import write_base

IDS = "eagle_aux_hidden_state_layer_ids"
Content = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]  # config.json, tensors, specdec.json


def eagle3(target: Target, **own: Any) -> Drafter:
    counts = torch.randperm(target.vocab_size, generator=torch.Generator().manual_seed(4))
    made: Drafter = new(target, eagle3_settings({"draft_vocab_size": 60, **own}), counts)
    return made


MADE: dict[str, Callable[[Target], Drafter]] = {
    "medusa": lambda t: new(t, medusa(3, 2)),
    "medusa, biases": lambda t: scattered(Medusa(t, 2, 1, False, bias=True)),
    "medusa, shared": lambda t: scattered(Medusa(t, 2, 1, True)),
    "eagle": lambda t: new(t, eagle_settings({"num_layers": 2})),
    "eagle3": eagle3,
    "eagle3, whole vocabulary": lambda t: eagle3(t, draft_vocab_size=None),
    "eagle3, all norms, other layers": lambda t: eagle3(
        t, fc_norm=True, norm_output=True, norm_before_residual=True, aux_layers=[0, 3]
    ),
    "eagle3, a width of its own": lambda t: eagle3(t, dimensions={"hidden_size": 32}),
}
# Tied embeddings: llama-3.2, qwen-2.5 (YaRN too), granite (a factor on the logits too); phi-2: partial rotary.
BASES = ("llama-2", "llama-3.2", "qwen-2.5", "granite", "phi-2")


@pytest.fixture(scope="module", params=BASES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Target]:
    folder = tmp_path_factory.mktemp("base") / request.param
    write_family(folder, request.param)
    return folder, Target.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("made", MADE)
def test_what_is_right_passes(family: tuple[Path, Target], tmp_path: Path, made: str) -> None:
    base, target = family
    MADE[made](target).save_pretrained(tmp_path / "d")
    assert check_folder(tmp_path / "d", base_facts(base)) == []


def test_facts_of_files_and_of_a_loaded_base_are_the_same(family: tuple[Path, Target]) -> None:
    base, target = family
    found, loaded = base_facts(base), BaseFacts.of(target)
    embeddings = found.embedding(), loaded.embedding()
    assert embeddings[1] is not None
    assert embeddings[0] is not None
    assert torch.equal(embeddings[0], embeddings[1])
    assert replace(found, embedding=loaded.embedding, identity=None) == replace(
        loaded, embedding=loaded.embedding, identity=None
    )
    assert found.identity == loaded.identity


def key(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content[0].update(changes)


def no_key(name: str) -> Callable[[Content], object]:
    return lambda content: content[0].pop(name)


def nested(holder: str, **changes: Any) -> Callable[[Content], object]:
    return lambda content: content[0][holder].update(changes)


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Content], object]:
    return lambda content: content[1].update({name: change(content[1][name]).contiguous().clone()})


def extra(name: str, *shape: int) -> Callable[[Content], object]:
    return lambda content: content[1].update({name: torch.ones(shape)})


def no_tensor(name: str) -> Callable[[Content], object]:
    return lambda content: content[1].pop(name)


def record(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content[2].update(changes)


def both(*changes: Callable[[Content], object]) -> Callable[[Content], object]:
    return lambda content: [change(content) for change in changes]


def layers(*ids: int) -> Callable[[Content], object]:
    """In all places, and not as it was trained."""
    return both(key(**{IDS: list(ids)}), nested("eagle_config", **{IDS: list(ids)}), record(trained_as=None))


def at(index: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(found: Tensor) -> Tensor:
        found = found.clone()
        found.view(-1)[index] = value
        return found

    return change


# (drafter, what is changed, all that is found: file, key or tensor, what is there, what is wanted)
WRONG: list[tuple[str, Callable[[Content], object], list[str]]] = [
    # Medusa's configuration and tensors
    (
        "medusa",
        key(medusa_num_heads=5),
        ["config.json: medusa_num_heads is 5, wanted absent: vLLM takes it for num_heads"],
    ),
    (
        "medusa",
        key(num_layers=1),
        ["config.json: num_layers is 1, wanted absent: vLLM takes it for num_hidden_layers"],
    ),
    ("medusa", key(model_type="llama"), ['config.json: model_type is "llama", wanted "medusa"']),
    ("medusa", no_key("architectures"), ['config.json: architectures is missing, wanted ["MedusaModel"]']),
    ("medusa", key(hidden_size=65), ["config.json: hidden_size is 65, wanted 64 as tiny's"]),
    ("medusa", key(vocab_size=261), ["config.json: vocab_size is 261, wanted 262 as tiny's"]),
    ("medusa", key(truncated_vocab_size=60), ["config.json: truncated_vocab_size is 60, wanted absent"]),
    ("medusa", key(logit_scale=0.5), ["config.json: logit_scale is 0.5, wanted absent"]),
    (
        "medusa",
        key(quantization_config={"bits": 4}),
        ['config.json: quantization_config is {"bits": 4}, wanted absent'],
    ),
    ("medusa", key(speculators_model_type="eagle3"), ["config.json: speculators_model_type is"]),
    (
        "medusa",
        key(num_heads="3"),
        [
            'config.json: num_heads is "3", wanted a whole',
            "no num_heads",
            'num_heads is "3", wanted 3 as specdec.json says in trained_as.num_heads',
        ],
    ),
    (
        "medusa",
        key(num_heads=2),
        [
            "blocks.2.layers.0.weight [64, 64] is there, wanted absent",
            "blocks.2.layers.1.weight",
            "lm_heads.2.weight [262, 64]",
            "draft_tokens is 3, wanted at most 2, the heads",
            "num_heads is 2, wanted 3 as specdec.json says in trained_as.num_heads",
        ],
    ),
    (
        "medusa",
        key(num_hidden_layers=1),
        [
            *(f"blocks.{i}.layers.1.weight [64, 64] is there" for i in range(3)),
            "num_hidden_layers is 1, wanted 2 as specdec.json says in trained_as.num_layers",
        ],
    ),
    ("medusa", no_tensor("lm_heads.1.weight"), ["model.safetensors: lm_heads.1.weight is missing, wanted [262, 64]"]),
    ("medusa", key(medusa_fc_bias=1), ["config.json: medusa_fc_bias is 1, wanted true or false"]),
    (
        "medusa, biases",
        no_tensor("blocks.1.layers.0.bias"),
        ["model.safetensors: blocks.1.layers.0.bias is missing, wanted [64]"],
    ),
    (
        "medusa, biases",
        key(medusa_fc_bias=False),
        [
            *(
                f"blocks.{i}.layers.0.bias [64] is there, wanted absent: medusa_fc_bias is not true, so vLLM drops it"
                for i in range(2)
            )
        ],
    ),
    ("medusa, shared", extra("lm_heads.0.weight", 262, 64), ["lm_heads.0.weight [262, 64] is there, wanted absent"]),
    # the layer of EAGLE and EAGLE-3
    (
        "eagle",
        key(architectures=["EagleLlamaForCausalLM"]),
        ['architectures is ["EagleLlamaForCausalLM"], wanted ["LlamaForCausalLM"]'],
    ),
    ("eagle", key(hidden_act="gelu"), ['config.json: hidden_act is "gelu", wanted "silu"']),
    ("eagle", key(attention_bias=True), ["config.json: attention_bias is true, wanted false"]),
    ("eagle", key(rms_norm_eps=0), ["config.json: rms_norm_eps is 0, wanted a number above 0"]),
    ("eagle", key(sliding_window=8), ["config.json: sliding_window is 8, wanted absent"]),
    ("eagle", key(logit_scale=2), ["config.json: logit_scale is 2, wanted 1.0 as tiny's"]),
    ("eagle", key(draft_vocab_size=60), ["config.json: draft_vocab_size is 60, wanted absent"]),
    ("eagle", key(max_position_embeddings=None), ["max_position_embeddings is null, wanted a whole number from 1"]),
    ("eagle", key(rope_theta=500.0), ["config.json: rope_theta is 500.0, wanted 10000.0 as in rope_parameters"]),
    ("eagle", no_key("rope_theta"), ["config.json: rope_theta is missing, wanted 10000.0 as in rope_parameters"]),
    ("eagle", no_key("rope_parameters"), ["config.json: rope_parameters is missing, wanted an object"]),
    (
        "eagle",
        nested("rope_parameters", rope_type="longrope"),
        ['rope_parameters.rope_type is "longrope", wanted one of'],
    ),
    ("eagle", nested("rope_parameters", partial_rotary_factor=0.5), ["rope_parameters.partial_rotary_factor is 0.5"]),
    (
        "eagle",
        key(rope_scaling={"type": "linear"}),
        ['config.json: rope_scaling is {"type": "linear"}, wanted absent'],
    ),
    (
        "eagle",
        key(head_dim=31),
        [
            "head_dim is 31, wanted an even number",
            *(f"layers.{i}.self_attn.{n}_proj.weight is" for i in range(2) for n in "kqvo"),
        ],
    ),
    (
        "eagle",
        key(num_attention_heads=3),
        [
            "num_attention_heads is 3, wanted a divisor of hidden_size, 64",
            *(f"layers.{i}.self_attn.{n}_proj.weight is" for i in range(2) for n in "qo"),
        ],
    ),
    ("eagle", no_key("intermediate_size"), ["intermediate_size is missing, wanted a whole", "no intermediate_size"]),
    (
        "eagle",
        tensor("fc.weight", lambda t: t.T),
        ["model.safetensors: fc.weight is [128, 64], wanted [64, 128] (it is transposed)"],
    ),
    (
        "eagle",
        extra("layers.0.input_layernorm.weight", 64),
        ["layers.0.input_layernorm.weight [64] is there, wanted absent: vLLM's EAGLE has none"],
    ),
    (
        "eagle",
        no_tensor("layers.1.input_layernorm.weight"),
        ["layers.1.input_layernorm.weight is missing, wanted [64]"],
    ),
    ("eagle", extra("norm.weight", 64), ["norm.weight [64] is there, wanted absent: vLLM's EAGLE has none"]),
    (
        "eagle",
        extra("lm_head.weight", 262, 64),
        ["lm_head.weight [262, 64] is there, wanted absent: EAGLE speaks with the base's"],
    ),
    (
        "eagle",
        extra("embed_tokens.weight", 262, 64),
        ["embed_tokens.weight [262, 64] is there, wanted absent: own_embed_tokens is not true"],
    ),
    ("eagle", key(own_embed_tokens=True), ["embed_tokens.weight is missing, wanted [262, 64]"]),
    (
        "eagle",
        extra("model.fc.weight", 64, 128),
        ["model.fc.weight [64, 128] is there, wanted absent: vLLM puts `model.`"],
    ),
    (
        "eagle",
        tensor("fc.weight", lambda t: t.bfloat16()),
        ["model.safetensors: fc.weight is bfloat16, wanted float32 as the others"],
    ),
    (
        "eagle",
        tensor("fc.weight", lambda t: t.double()),
        ["fc.weight is float64, wanted float32, bfloat16 or float16"],
    ),
    (
        "eagle",
        tensor("fc.weight", lambda t: t.to(torch.int8)),
        ["fc.weight is int8, wanted float32, bfloat16 or float16"],
    ),
    (
        "eagle",
        tensor("fc.weight", at(7, float("nan"))),
        ["model.safetensors: fc.weight holds 1 numbers that are NaN or infinite"],
    ),
    ("eagle", key(dtype="bfloat16"), ['config.json: dtype is "bfloat16", wanted float32 as the tensors']),
    ("eagle", nested("rope_parameters", rope_theta=0), ["rope_parameters.rope_theta is 0, wanted a number above 0"]),
    (
        "eagle",
        key(num_key_value_heads=3),
        [
            "num_key_value_heads is 3, wanted a divisor of num_attention_heads, 2",
            *(f"layers.{i}.self_attn.{n}_proj.weight is [32, 64], wanted [96, 64]" for i in range(2) for n in "kv"),
        ],
    ),
    # EAGLE-3's own
    ("eagle3", key(architectures=["LlamaForCausalLM"]), ['wanted ["LlamaForCausalLMEagle3"]']),
    (
        "eagle3",
        tensor("fc.weight", lambda t: t.T),
        ["model.safetensors: fc.weight is [192, 64], wanted [64, 192] (it is transposed)"],
    ),
    (
        "eagle3",
        layers(2, 3, 5),
        [f"config.json: {IDS} is [2, 3, 5], wanted layers up to 4", f"eagle_config.{IDS} is [2, 3, 5], wanted"],
    ),
    (
        "eagle3",
        layers(2, 2, 4),
        [f"config.json: {IDS} is [2, 2, 4], wanted each layer once", f"eagle_config.{IDS} is [2, 2, 4]"],
    ),
    (
        "eagle3",
        layers(3, 2, 4),
        [f"config.json: {IDS} is [3, 2, 4], wanted each layer once", f"eagle_config.{IDS} is [3, 2, 4]"],
    ),
    (
        "eagle3",
        layers(-1, 2, 4),
        [f"config.json: {IDS} is [-1, 2, 4], wanted a list of layers", f"eagle_config.{IDS} is [-1"],
    ),
    (
        "eagle3",
        key(**{IDS: [1, 2, 3]}),
        [
            f"eagle_config.{IDS} is [2, 3, 4], wanted [1, 2, 3] as in {IDS} beside it",
            f"{IDS} is [1, 2, 3], wanted [2, 3, 4] as specdec.json says in trained_as.aux_layers",
        ],
    ),
    (
        "eagle3",
        both(layers(1, 2, 3), record(trained_as={"aux_layers": [2, 3, 4]})),
        [f"{IDS} is [1, 2, 3], wanted [2, 3, 4] as specdec.json says in trained_as.aux_layers"],
    ),
    (
        "eagle3",
        nested("eagle_config", **{IDS: [1, 2, 3]}),
        [f"eagle_config.{IDS} is [1, 2, 3], wanted [2, 3, 4] as in"],
    ),
    (
        "eagle3",
        no_key(IDS),
        [f"config.json: {IDS} is null, wanted a list", f"eagle_config.{IDS} is [2, 3, 4], wanted null"],
    ),
    (
        "eagle3",
        key(num_aux_hidden_states=2),
        ["num_aux_hidden_states is 2, wanted 3 as", "fc.weight is [64, 192], wanted [64, 128]"],
    ),
    (
        "eagle3",
        nested("eagle_config", use_aux_hidden_state=False),
        ["eagle_config.use_aux_hidden_state is false, wanted true"],
    ),
    ("eagle3", nested("eagle_config", norm_before_fc=True), ["eagle_config.norm_before_fc is true, wanted false as"]),
    ("eagle3", key(target_hidden_size=32), ["config.json: target_hidden_size is 32, wanted 64 as tiny's"]),
    ("eagle3", key(logit_scale=0.5), ["config.json: logit_scale is 0.5, wanted absent"]),
    ("eagle3", key(tie_word_embeddings=True), ["config.json: tie_word_embeddings is true, wanted false"]),
    ("eagle3", no_key("norm_output"), ["config.json: norm_output is missing, wanted true or false"]),
    (
        "eagle3",
        key(norm_output=True),
        ["norm_output is true, wanted false as specdec.json says in trained_as.norm_output"],
    ),
    (
        "eagle3",
        key(draft_vocab_size=999),
        [
            "draft_vocab_size is 999, wanted at most 262",
            "d2t [60] is there, wanted absent",
            "t2d [262] is there",
            "lm_head.weight is [60, 64], wanted [999, 64]",
            "draft_vocab_size is 999, wanted 60 as specdec.json says",
        ],
    ),
    ("eagle3", no_tensor("d2t"), ["model.safetensors: d2t is missing, wanted [60]"]),
    ("eagle3", no_tensor("norm.weight"), ["model.safetensors: norm.weight is missing, wanted [64]"]),
    ("eagle3", no_tensor("layers.0.hidden_norm.weight"), ["layers.0.hidden_norm.weight is missing, wanted [64]"]),
    (
        "eagle3",
        tensor("d2t", lambda t: t + torch.arange(60)),
        ["d2t gives 9 tokens that tiny has not, wanted i + d2t[i] from 0 to 261"],
    ),
    ("eagle3", tensor("d2t", lambda t: t + 200), ["tokens that tiny has not, wanted i + d2t[i] from 0 to 261: at "]),
    (
        "eagle3",
        tensor("d2t", lambda t: torch.cat([t[:1], t[:1] - 1, t[2:]])),
        ["d2t gives token", "t2d is not what d2t says for 1 tokens"],
    ),
    (
        "eagle3",
        tensor("d2t", at(59, 201)),
        ["t2d is not what d2t says for 2 tokens, wanted equal: token 259 is in t2d and not in d2t"],
    ),
    ("eagle3", tensor("d2t", lambda t: t.int()), ["model.safetensors: d2t is int32, wanted int64"]),
    ("eagle3", tensor("t2d", lambda t: t.long()), ["model.safetensors: t2d is int64, wanted bool"]),
    ("eagle3", tensor("t2d", lambda t: t.roll(1)), ["model.safetensors: t2d is not what d2t says for"]),
    (
        "eagle3",
        tensor("t2d", torch.ones_like),
        ["t2d marks 262 tokens, wanted 60", "t2d is not what d2t says for 202 tokens"],
    ),
    (
        "eagle3, whole vocabulary",
        extra("t2d", 262),
        ["t2d [262] is there, wanted absent: there is no draft vocabulary", "t2d is float32, wanted bool"],
    ),
    (
        "eagle3, a width of its own",
        no_tensor("embed_tokens.weight"),
        ["embed_tokens.weight is missing, wanted [262, 32]"],
    ),
    # specdec.json
    (
        "eagle",
        record(base={"weights": "0" * 64}),
        [*(f"specdec.json: base.{p} is " for p in ("weights", "tokenizer", "chat_template"))],
    ),
    ("eagle", record(draft_tokens=0), ["specdec.json: draft_tokens is 0, wanted a whole number from 1"]),
    ("eagle", record(method="dflash"), ['specdec.json: method is "dflash", wanted "eagle"']),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_base(folder, num_hidden_layers=4)
    return folder


@pytest.fixture(scope="module")
def right(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = Target.from_pretrained(tiny, device="cpu")
    folders = {made: tmp_path_factory.mktemp("right") / "d" for made in MADE}
    for made, folder in folders.items():
        MADE[made](target).save_pretrained(folder)
    return folders


def spoilt(right: Path, folder: Path, change: Callable[[Content], object]) -> Path:
    content: Content = (
        json.loads((right / "config.json").read_text()),
        load_file(right / "model.safetensors"),
        json.loads((right / "specdec.json").read_text()),
    )
    change(content)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content[0]))
    save_file(content[1], folder / "model.safetensors")
    (folder / "specdec.json").write_text(json.dumps(content[2]))
    return folder


@pytest.mark.parametrize(("made", "change", "wanted"), WRONG, ids=lambda v: v[0][:50] if isinstance(v, list) else "")
def test_what_is_wrong_is_found_and_nothing_else(
    tiny: Path,
    right: dict[str, Path],
    tmp_path: Path,
    made: str,
    change: Callable[[Content], object],
    wanted: list[str],
) -> None:
    found = check_folder(spoilt(right[made], tmp_path / "d", change), base_facts(tiny))
    unexplained = [line for line in found if not any(part in line for part in wanted)]
    unseen = [part for part in wanted if not any(part in line for line in found)]
    assert (unexplained, unseen) == ([], [])
    assert all("wanted" in line or "were not checked" in line for line in found)
    assert all(line.startswith(f"{tmp_path / 'd'}/") for line in found)


def test_another_base_is_another_base(right: dict[str, Path], tmp_path: Path) -> None:
    """Of the same sizes: the hashes tell. Of others: the sizes too. Of config.json alone: the sizes alone."""
    write_base(tmp_path / "twin", seed=1, num_hidden_layers=4)
    found = check_folder(right["eagle"], base_facts(tmp_path / "twin"))
    assert [line.partition("specdec.json: ")[2][:15] for line in found] == ["base.weights is"]
    write_base(tmp_path / "wide", hidden_size=32, num_hidden_layers=4)
    found = check_folder(right["medusa"], base_facts(tmp_path / "wide"))
    assert any(line.endswith("config.json: hidden_size is 64, wanted 32 as wide's") for line in found)
    for file in tmp_path.glob("*/*.safetensors"):
        file.unlink()
    assert base_facts(tmp_path / "wide").identity is None
    assert check_folder(right["eagle"], base_facts(tmp_path / "twin")) == []


def test_a_copy_of_the_bases_embedding_is_found(tiny: Path, right: dict[str, Path], tmp_path: Path) -> None:
    own = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    for change, count in ((own, 1), (own.roll(1, 0), 0)):
        held = both(key(own_embed_tokens=True), lambda c, t=change: c[1].update({"embed_tokens.weight": t.clone()}))
        found = check_folder(spoilt(right["eagle3"], tmp_path / str(count), held), base_facts(tiny))
        assert [line.endswith("vLLM shares the base's") for line in found] == [True] * count


def test_files_that_are_missing_damaged_or_too_many(tiny: Path, right: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(right["medusa"], tmp_path / "d", lambda content: None)
    (folder / "specdec.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    found = check_folder(folder, base_facts(tiny))
    assert [line.removeprefix(f"{folder}/").partition(",")[0] for line in found] == [
        "specdec.json is missing",
        "pytorch_model.bin is there",
    ]
    (folder / "config.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(b"cut")
    found = check_folder(folder, base_facts(tiny))
    assert "config.json is list, wanted a JSON object" in found[0]
    assert any("model.safetensors is damaged" in line for line in found)
    with pytest.raises(ModelError, match="is no folder with a drafter"):
        check_folder(tmp_path / "none", base_facts(tiny))
    with pytest.raises(ModelError, match=r"is no base: config\.json is missing"):
        base_facts(tmp_path)


def test_saving_refuses_with_all_that_is_wrong(tiny: Path, tmp_path: Path) -> None:
    drafter = MADE["eagle3"](Target.from_pretrained(tiny, device="cpu"))
    drafter.checkpoint_config()["num_aux_hidden_states"] = 2
    drafter.state_dict()["d2t"][0] = 300
    with pytest.raises(ModelError, match=r"not saved: .*num_aux_hidden_states is 2.*; .*d2t gives 1 tokens"):
        drafter.save_pretrained(tmp_path / "d")
    assert not (tmp_path / "d").exists()
