"""What is written in another's layout is read again as the very drafter, and is what that format describes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from specdec.drafters import Drafter, Eagle, Eagle3, Medusa
from specdec.errors import ConfigError, ModelError
from specdec.export import load_any, write_as
from specdec.targets import Target
from tests.export import folders, plain
from tests.export.test_load import assert_same
from tests.export.test_plain import IDS, close, said

NORMS: dict[str, Any] = {"fc_norm": True, "norm_output": True}
NARROW: dict[str, Any] = {"dimensions": {"hidden_size": 48, "num_attention_heads": 3}}
ROPE: dict[str, Any] = {"dimensions": {"rope_theta": 77.0}}


def biased_eagle(target: Target, size: float = 0.5) -> Drafter:
    """As SafeAILab's first ones: with a bias in `fc`."""
    made = folders.eagle(target)
    tensors = {**made.state_dict(), "fc.bias": size * torch.randn(target.hidden_size)}
    return Eagle.from_checkpoint(target, {**made.checkpoint_config(), "eagle_fc_bias": True}, tensors)


def own_embedding(target: Target, **own: Any) -> Drafter:
    """Of the base's width, as drafters trained elsewhere may have it."""
    made = folders.eagle3(target, **own)
    tensors = {**made.state_dict(), "embed_tokens.weight": target.embedding_weight.roll(1, 0)}
    return Eagle3.from_checkpoint(target, {**made.checkpoint_config(), "own_embed_tokens": True}, tensors)


def one_norm(target: Target, **own: Any) -> Drafter:
    """Over all the states, as gpt-oss's drafter has it."""
    made = folders.eagle3(target, aux_layers=[1, 3, 7], **own)
    tensors = {**made.state_dict(), "input_norm.weight": 1 + 0.1 * torch.randn(3 * target.hidden_size)}
    return Eagle3.from_checkpoint(target, {**made.checkpoint_config(), "norm_before_fc": True}, tensors)


def further_layers(target: Target) -> Drafter:
    made = folders.eagle3(target, aux_layers=[1, 3, 7])
    second = folders.eagle(target, num_layers=2).state_dict()
    tensors = made.state_dict() | {n: t for n, t in second.items() if n.startswith("layers.1.")}
    return Eagle3.from_checkpoint(target, {**made.checkpoint_config(), "num_hidden_layers": 2}, tensors)


def repeated(target: Target) -> Drafter:
    """Two layers a head, which are the same one, as in the authors' own models of several layers."""
    heads = folders.medusa(target, 2)
    for block in heads.blocks:
        block.layers[1].load_state_dict(block.layers[0].state_dict())
    return heads


def three_states(**own: Any) -> Callable[[Target], Drafter]:
    return lambda target: folders.eagle3(target, aux_layers=[1, 3, 7], **own)


Case = tuple[str, Callable[[Target], Drafter]]
CASES: dict[str, Case] = {
    "medusa": ("medusa", lambda t: folders.medusa(t, 1)),
    "medusa, no biases": ("medusa", lambda t: folders.medusa(t, 1, bias=False)),
    "medusa, one layer repeated": ("medusa", repeated),
    "speculators": ("speculators", three_states()),
    "speculators, EAGLE-3.1": ("speculators", three_states(norm_before_residual=True, **NORMS)),
    "speculators, whole vocabulary": ("speculators", lambda t: folders.eagle3(t, None, **ROPE)),
    "speculators, an embedding of its own": ("speculators", own_embedding),
    "speculators, one norm": ("speculators", one_norm),
    "speculators, further layers": ("speculators", further_layers),
    "sglang, eagle": ("sglang", folders.eagle),
    "sglang, eagle, two layers": ("sglang", lambda t: folders.eagle(t, num_layers=2, **ROPE)),
    "sglang, eagle, a bias": ("sglang", biased_eagle),
    "sglang, eagle3": ("sglang", three_states(**ROPE)),
    "sglang, EAGLE-3.1, two states": ("sglang", lambda t: folders.eagle3(t, aux_layers=[2, 5], **NORMS)),
    "sglang, eagle3, a width of its own": ("sglang", three_states(**NARROW)),
    "sglang, eagle3, one norm": ("sglang", one_norm),
    "trtllm": ("trtllm", three_states()),
    "trtllm, EAGLE-3.1, the last layer": ("trtllm", lambda t: folders.eagle3(t, aux_layers=[2, 4, 8], **NORMS)),
    "trtllm, whole vocabulary": ("trtllm", lambda t: folders.eagle3(t, None, aux_layers=[1, 3, 7], **ROPE)),
    "trtllm, a width of its own": ("trtllm", three_states(**NARROW)),
}
SEEN = {"medusa": "the original Medusa", "speculators": "speculators", "trtllm": "ModelOpt"}


def made_by(case: str, target: Target) -> tuple[str, Drafter]:
    layout, make = CASES[case]
    drafter = make(target).eval()
    drafter.draft_tokens = min(4, drafter.draft_tokens + 1) if not isinstance(drafter, Medusa) else 3
    return layout, drafter


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_comes_back_as_the_very_drafter(
    deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Every weight and every logit to the bit, whether the folder's layout is seen or said."""
    layout, drafter = made_by(case, deep)
    write_as(layout, drafter, tmp_path / "d", "some/base")
    for asked in (None, layout):
        loaded, name = load_any(tmp_path / "d", deep, asked)
        eagle3 = isinstance(drafter, Eagle3)
        assert name == ({"sglang": "ModelOpt" if eagle3 else "vLLM", **SEEN}[layout] if asked is None else name)
        assert loaded.method == drafter.method
        assert loaded.aux_layers == drafter.aux_layers
        own = drafter.checkpoint_tensors()
        assert loaded.checkpoint_tensors().keys() == own.keys()
        for tensor_name, tensor in loaded.checkpoint_tensors().items():
            assert tensor.dtype == own[tensor_name].dtype
            assert torch.equal(tensor, own[tensor_name]), tensor_name
        assert_same(deep, loaded, drafter)
        if not isinstance(drafter, Medusa):
            logits = [said(deep, one, 3, monkeypatch) for one in (loaded, drafter)]
            assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))
    assert loaded.draft_tokens == (3 if layout in ("sglang", "trtllm") else drafter.draft_tokens)


def auxiliary(target: Target, layers: list[int]) -> Tensor:
    """The outputs [T, A*H] of the base's layers, which are counted from 0."""
    outputs, _ = plain.layer_outputs(target.model, IDS[:-1])
    return torch.cat([outputs[i] for i in layers], 1)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("speculators", "trtllm"))])
@torch.no_grad()
def test_eagle3_is_what_its_layout_describes(
    deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Computed from the files alone: speculators counts states from 1, SGLang and TensorRT-LLM outputs from 0."""
    layout, drafter = made_by(case, deep)
    write_as(layout, drafter, tmp_path / "d", "some/base")
    config, weights = plain.folder(tmp_path / "d")
    if layout == "speculators":
        sizes = config["transformer_layer_config"]
        layers = [i - 1 for i in config["eagle_aux_hidden_state_layer_ids"]]
        theta = sizes["rope_parameters"]["rope_theta"]
        embedding = weights["embed_tokens.weight"]
    else:
        sizes, theta = config, config["rope_theta"]
        layers = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
        embedding = weights.get("embed_tokens.weight", deep.embedding_weight)
        assert not any(name.startswith("layers.") or name == "t2d" for name in weights)
        weights = folders.renamed(weights, "midlayer.", "layers.0.")
    if layout == "trtllm":
        settings = yaml.safe_load((tmp_path / "d/trtllm.yaml").read_text())["speculative_config"]
        assert settings.pop("eagle3_layers_to_capture") == layers
        assert settings == {
            "decoding_type": "Eagle3",
            "max_draft_len": 4,
            "speculative_model_dir": str(tmp_path / "d"),
        }
    states = auxiliary(deep, layers)
    wanted = plain.eagle3_chain(sizes, {**config, "rope": (theta, 1.0)}, weights, embedding, states, IDS[1:], 3)
    close(said(deep, drafter, 3, monkeypatch), wanted)


@pytest.mark.parametrize("case", ["sglang, eagle3", "sglang, EAGLE-3.1, two states", "sglang, eagle3, one norm"])
@torch.no_grad()
def test_eagle3_is_what_sglang_computes(
    deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    _, drafter = made_by(case, deep)
    write_as("sglang", drafter, tmp_path / "d", "some/base")
    config, weights = plain.folder(tmp_path / "d")
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    weights = folders.renamed(weights, "midlayer.", "layers.0.")
    states = auxiliary(deep, config["eagle_config"]["eagle_aux_hidden_state_layer_ids"])
    assert weights["fc.weight"].shape[1] == config["num_aux_hidden_states"] * deep.hidden_size
    facts = {**config, "rope": (config["rope_theta"], 1.0)}
    wanted = plain.eagle3_chain(config, facts, weights, deep.embedding_weight, states, IDS[1:], 3)
    close(said(deep, drafter, 3, monkeypatch), wanted)


@pytest.mark.parametrize("case", ["sglang, eagle", "sglang, eagle, a bias"])
@torch.no_grad()
def test_eagle_is_what_sglang_computes(
    deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """`fc` has a bias, the layer no input norm; the base's embedding and output layer."""
    _, drafter = made_by(case, deep)
    write_as("sglang", drafter, tmp_path / "d", "some/base")
    config, w = plain.folder(tmp_path / "d")
    assert config["architectures"] == ["LlamaForCausalLMEagle"]
    state = plain.layer_outputs(deep.model, IDS[:-1])[1]
    x = torch.cat([deep.embedding_weight[IDS[1:]], state], 1) @ w["fc.weight"].T + w["fc.bias"]
    x = x + plain.attention(w, "layers.0.self_attn", x, config, (config["rope_theta"], 1.0))
    y = plain.rms(x, w["layers.0.post_attention_layernorm.weight"], config["rms_norm_eps"])
    gate, up, down = (w[f"layers.0.mlp.{p}_proj.weight"].T for p in ("gate", "up", "down"))
    x = x + (silu(y @ gate) * (y @ up)) @ down
    close(said(deep, drafter, 1, monkeypatch), [deep.model.lm_head.weight @ x[-1]])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_medusa_is_what_its_layout_describes(deep: Target, tmp_path: Path, shared: bool, bias: bool) -> None:
    """Heads that share an output layer propose the same with a copy each."""
    heads = folders.medusa(deep, 1, shared=shared, bias=bias).eval()
    write_as("medusa", heads, tmp_path / "d", "some/base")
    config = json.loads((tmp_path / "d/config.json").read_text())
    assert config == {"medusa_num_heads": 3, "medusa_num_layers": 1, "base_model_name_or_path": "some/base"}
    weights = load_file(tmp_path / "d/medusa_lm_head.safetensors")
    assert len(weights) == 3 * 3
    state = plain.layer_outputs(deep.model, IDS[:-1])[1][-1]
    wanted = plain.medusa(weights, "", 3, 1, state)
    close([b(state) @ w.T for b, w in zip(heads.blocks, heads.output_weights, strict=True)], wanted)
    assert_same(deep, load_any(tmp_path / "d", deep)[0], heads)


@pytest.mark.parametrize(("case", "algorithm"), [("sglang, eagle", "EAGLE"), ("sglang, eagle3", "EAGLE3")])
def test_sglangs_launch_settings(deep: Target, tmp_path: Path, case: str, algorithm: str) -> None:
    _, drafter = made_by(case, deep)
    write_as("sglang", drafter, tmp_path / "d", "some/base")
    assert yaml.safe_load((tmp_path / "d/sglang.yaml").read_text()) == {
        "model-path": "some/base",
        "speculative-algorithm": algorithm,
        "speculative-draft-model-path": str(tmp_path / "d"),
        "speculative-num-steps": 4,
        "speculative-eagle-topk": 1,
        "speculative-num-draft-tokens": 5,
    }


def test_speculators_names_base_and_draft_tokens(deep: Target, tmp_path: Path) -> None:
    _, drafter = made_by("speculators", deep)
    write_as("speculators", drafter, tmp_path / "d", "some/base")
    said = json.loads((tmp_path / "d/config.json").read_text())["speculators_config"]
    assert said["proposal_methods"] == [{"proposal_type": "greedy", "speculative_tokens": 4}]
    assert said["verifier"] == {"name_or_path": "some/base", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rotary_scalings_are_written(deep: Target, tmp_path: Path, kind: str) -> None:
    drafter = folders.eagle3(deep, aux_layers=[1, 3, 7])
    rope = {"rope_type": kind, "rope_theta": 500.0, "factor": 2.0, "original_max_position_embeddings": 128}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {**drafter.checkpoint_config(), "rope_parameters": rope, "rope_theta": 500.0}
    drafter = Eagle3.from_checkpoint(deep, config, drafter.state_dict())
    for layout in ("speculators", "sglang", "trtllm"):
        write_as(layout, drafter, tmp_path / layout, "some/base")
        loaded, _ = load_any(tmp_path / layout, deep)
        assert isinstance(loaded, Eagle3)
        assert loaded.sizes == drafter.sizes


@pytest.mark.parametrize("layout", ["speculators", "sglang", "trtllm"])
def test_weights_keep_their_type(base_folder: Path, tmp_path: Path, layout: str) -> None:
    narrow = Target.from_pretrained(base_folder, dtype="bfloat16", device="cpu")
    made = folders.eagle3(narrow, aux_layers=[1]) if layout != "trtllm" else folders.eagle3(narrow, aux_layers=[1, 2])
    if layout == "sglang":
        made = folders.eagle3(narrow, aux_layers=[1], **NARROW)
    write_as(layout, made.to(torch.bfloat16), tmp_path / "d", "some/base")
    config, tensors = plain.folder(tmp_path / "d")
    assert {tensors.pop(name).dtype for name in ("d2t", "t2d") if name in tensors} <= {torch.int64, torch.bool}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert config["torch_dtype"] == "bfloat16"


REFUSED: list[tuple[str, Callable[[Target], Drafter], str]] = [
    ("speculators", folders.medusa, "EAGLE-3's, and this drafter is Medusa: serve it with vLLM"),
    ("speculators", folders.eagle, "EAGLE-3's, and this drafter is EAGLE: "),
    ("speculators", three_states(**NARROW), "this one's is 48 beside the base's 64"),
    ("speculators", lambda t: one_norm(t, fc_norm=True), "refuses fc_norm beside norm_before_fc"),
    ("medusa", folders.eagle, "holds Medusa heads, and this drafter is EAGLE: choose another --to"),
    ("medusa", lambda t: folders.medusa(t, 2), r"repeats one layer a head, and here 2 differ \(head 0, layer 1\)"),
    ("sglang", folders.medusa, "SGLang takes EAGLE and EAGLE-3, and this drafter is Medusa"),
    ("sglang", lambda t: folders.eagle3(t), r"aux_layers \[2, 4, 8\] ask for the output of the last one: .* up to 7"),
    ("sglang", three_states(norm_before_residual=True), "SGLang adds up .* norm_before_residual is true: train it"),
    ("sglang", lambda t: own_embedding(t, aux_layers=[1, 3, 7]), "SGLang takes the base's embedding"),
    ("sglang", further_layers, "SGLang names further layers otherwise, and here are 2 layers"),
    ("sglang", lambda t: folders.eagle3(t, aux_layers=[3]), r"SGLang knows states .* as wide as the module \(64\)"),
    ("sglang", lambda t: folders.eagle3(t, aux_layers=[0, 3]), r"aux_layers \[0, 3\] ask for the embeddings"),
    ("trtllm", folders.medusa, "TensorRT-LLM takes EAGLE-3 alone, and this drafter is Medusa: serve it with vLLM"),
    ("trtllm", folders.eagle, "TensorRT-LLM takes EAGLE-3 alone, and this drafter is EAGLE"),
    ("trtllm", three_states(norm_before_residual=True), "TensorRT-LLM adds up .* norm_before_residual is true"),
    ("trtllm", lambda t: one_norm(t, fc_norm=True), "TensorRT-LLM norms states once"),
    ("trtllm", lambda t: folders.eagle3(t, aux_layers=[3], **NARROW), "here aux_layers names one"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "make", "words"), REFUSED)
def test_what_a_layout_cannot_say_is_refused(
    deep: Target, tmp_path: Path, layout: str, make: Callable[[Target], Drafter], words: str
) -> None:
    """In one line, and what was there is still there."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kept").write_text("")
    with pytest.raises(ModelError, match=words) as caught:
        write_as(layout, make(deep), tmp_path / "d", "some/base")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "kept"]


def test_eagle_on_a_base_that_scales_its_logits_is_refused_for_sglang(deep: Target, tmp_path: Path) -> None:
    drafter = folders.eagle(deep)
    assert isinstance(drafter, Eagle)
    drafter.logit_scale = 0.5
    with pytest.raises(ModelError, match=r"leaves the logits as they are, and tiny-llama-8 scales them by 0\.5"):
        write_as("sglang", drafter, tmp_path / "d", "some/base")
    drafter = own = folders.eagle(deep)
    tensors = {**own.state_dict(), "embed_tokens.weight": deep.embedding_weight.roll(1, 0)}
    drafter = Eagle.from_checkpoint(deep, {**own.checkpoint_config(), "own_embed_tokens": True}, tensors)
    with pytest.raises(ModelError, match="takes the base's embedding"):
        write_as("sglang", drafter, tmp_path / "d", "some/base")


@pytest.mark.parametrize("layout", ["vllm", "modelopt", "nothing"])
def test_unknown_layouts(deep: Target, tmp_path: Path, layout: str) -> None:
    with pytest.raises(ConfigError, match=f"layout is '{layout}': choose one of speculators, medusa, sglang, trtllm"):
        write_as(layout, folders.eagle(deep), tmp_path / "d", "some/base")


@pytest.mark.parametrize("case", ["medusa", "speculators", "sglang, eagle3", "trtllm"])
def test_nothing_half_written(deep: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    layout, drafter = made_by(case, deep)
    write_as(layout, drafter, tmp_path / "d", "some/base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}

    def torn(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("specdec.export.content.save_file", torn)
    with pytest.raises(OSError, match="the disk is full"):
        write_as(layout, drafter, tmp_path / "d", "another/base")
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_same_drafter_gives_the_same_bytes(deep: Target, tmp_path: Path) -> None:
    layout, drafter = made_by("sglang, eagle3", deep)
    written = []
    for _ in range(2):
        write_as(layout, drafter, tmp_path / "d", "some/base")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {"config.json", "model.safetensors", "sglang.yaml"}


LAID_OUT: dict[str, tuple[Callable[[Target], folders.Folder], str, tuple[str, ...]]] = {
    "speculators": (lambda t: folders.eagle3_speculators(folders.eagle3(t)), "speculators", ("speculators",)),
    "medusa": (lambda t: folders.medusa_original(folders.medusa(t)), "the original Medusa", ("medusa",)),
    "modelopt": (lambda t: folders.eagle3_modelopt(folders.eagle3(t)), "ModelOpt",
                 ("modelopt", "sglang", "trtllm", "vllm")),
    "vLLM's EAGLE": (lambda t: folders.eagle_vllm(folders.eagle(t)), "vLLM", ("vllm", "sglang")),
    "vLLM's Medusa": (lambda t: folders.medusa_vllm(folders.medusa(t)), "vLLM", ("vllm",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAID_OUT)
def test_a_layout_that_is_asked_for(deep: Target, tmp_path: Path, kind: str) -> None:
    """Others are refused by both names."""
    lay_out, name, allowed = LAID_OUT[kind]
    folder = folders.write(tmp_path / "d", lay_out(deep))
    for option in ("speculators", "medusa", "modelopt", "vllm", "sglang", "trtllm"):
        if option in allowed:
            load_any(folder, deep, option)
        else:
            with pytest.raises(ModelError, match=f"d is in the layout of {name}, and not of "):
                load_any(folder, deep, option)
    with pytest.raises(ConfigError, match="layout is 'other': choose one of speculators, medusa, modelopt, vllm, "):
        load_any(folder, deep, "other")


def test_our_own_folder_is_vllms(deep: Target, tmp_path: Path) -> None:
    folders.eagle(deep).save_pretrained(tmp_path / "d")
    assert load_any(tmp_path / "d", deep, "vllm")[1] == "specdec"
    with pytest.raises(ModelError, match="d: it is a drafter of specdec, in vLLM's layout, and not in SGLang's"):
        load_any(tmp_path / "d", deep, "sglang")


def test_layers_mean_what_the_asked_layout_means(deep: Target, tmp_path: Path) -> None:
    """SpecForge's `eagle_config` has none of ModelOpt's keys: vLLM reads it as it reads its own, SGLang adds one."""
    config, tensors = folders.eagle3_vllm(folders.eagle3(deep, aux_layers=[2, 4, 5]))
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
    folder = folders.write(tmp_path / "d", (config, tensors))
    assert load_any(folder, deep)[0].aux_layers == (1, 3, 4)
    for option in ("sglang", "trtllm"):
        assert load_any(folder, deep, option)[0].aux_layers == (2, 4, 5)
    del config["eagle_config"]
    assert load_any(folders.write(folder, (config, tensors)), deep, "sglang")[0].aux_layers == (2, 4, 5)
