"""A drafter laid out as others do, loaded, is the drafter that it was made from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specdec.decoding import generate
from specdec.drafters import Drafter, DraftState, Tree
from specdec.export import load_any
from specdec.targets import Target
from tests.export import folders
from tests.export.folders import Folder, write

Case = tuple[Callable[[Target], Drafter], Callable[[Drafter], Folder], str, int]
CASES: dict[str, Case] = {
    "medusa, original": (folders.medusa, folders.medusa_original, "the original Medusa", 3),
    "medusa, original, with a prefix": (
        lambda t: folders.medusa(t, num_layers=1),
        lambda d: folders.medusa_original(d, "medusa_head."),
        "the original Medusa",
        3,
    ),
    "medusa, ModelOpt": (folders.medusa, folders.medusa_modelopt, "ModelOpt", 3),
    "medusa, vLLM": (lambda t: folders.medusa(t, bias=False), folders.medusa_vllm, "vLLM", 3),
    "medusa, vLLM, with biases": (folders.medusa, folders.medusa_vllm, "vLLM", 3),
    "medusa, vLLM, shared": (lambda t: folders.medusa(t, shared=True), folders.medusa_vllm, "vLLM", 3),
    "eagle, vLLM": (folders.eagle, folders.eagle_vllm, "vLLM", 3),
    "eagle, vLLM, two layers": (lambda t: folders.eagle(t, num_layers=2), folders.eagle_vllm, "vLLM", 3),
    "eagle3, vLLM": (lambda t: folders.eagle3(t, aux_layers=[2, 4, 5]), folders.eagle3_vllm, "vLLM", 3),
    "eagle3, vLLM, whole vocabulary": (
        lambda t: folders.eagle3(t, None, aux_layers=[2, 4, 5]),
        folders.eagle3_vllm,
        "vLLM",
        3,
    ),
    "eagle3, vLLM, all said": (
        lambda t: folders.eagle3(
            t, aux_layers=[1, 7], norm_before_residual=True, fc_norm=True, norm_output=True,
            dimensions={"hidden_size": 48, "num_attention_heads": 3},
        ),
        lambda d: (d.checkpoint_config(), d.checkpoint_tensors()),
        "vLLM",
        3,
    ),
    "eagle3, speculators": (
        lambda t: folders.eagle3(t, aux_layers=[1, 3, 8], norm_before_residual=True, fc_norm=True, norm_output=True),
        folders.eagle3_speculators,
        "speculators",
        4,
    ),
    "eagle3, ModelOpt": (lambda t: folders.eagle3(t, aux_layers=[1, 3, 8]), folders.eagle3_modelopt, "ModelOpt", 3),
    "eagle3, ModelOpt, old": (
        lambda t: folders.eagle3(t, None, aux_layers=[2, 4]),
        lambda d: folders.eagle3_modelopt(d, old=True),
        "ModelOpt",
        3,
    ),
}  # fmt: skip
IDS = [1, 4, 30, 41, 52, 63, 70, 12, 91]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_proposes_the_same(deep: Target, tmp_path: Path, case: str) -> None:
    made, lay_out, layout, draft_tokens = CASES[case]
    drafter = made(deep).eval()
    loaded, name = load_any(write(tmp_path / "d", lay_out(drafter)), deep)
    assert name == layout
    assert loaded.draft_tokens == draft_tokens
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.aux_layers == drafter.aux_layers
    assert_same(deep, loaded, drafter)


def assert_same(target: Target, loaded: Drafter, drafter: Drafter, ids: list[int] = IDS) -> None:
    """Over several steps with one cache, as a chain and as a tree."""
    for tree in (None, Tree(3, 3, 9)):
        states, read = (DraftState(), DraftState()), 0
        for upto in (4, 5, 8):
            proposals = []
            for one, state in zip((loaded, drafter), states, strict=True):
                out = target.forward(torch.tensor([ids[:upto]]), layers=one.aux_layers)
                auxiliary = None if out.auxiliary is None else out.auxiliary[0, read:]
                state.observe(torch.tensor(ids[read + 1 : upto + 1]), out.hidden[0, read:], auxiliary)
                proposals.append(one.propose(state, 3, tree).token_ids.tolist())
            assert proposals[0] == proposals[1]
            read = upto


@pytest.mark.parametrize("case", [case for case in CASES if "all said" not in case])
def test_it_is_saved_as_ours(deep: Target, tmp_path: Path, case: str) -> None:
    """And comes back as a drafter of this base."""
    made, lay_out, _, draft_tokens = CASES[case]
    drafter = made(deep).eval()
    load_any(write(tmp_path / "d", lay_out(drafter)), deep)[0].save_pretrained(tmp_path / "ours")
    loaded, name = load_any(tmp_path / "ours", deep)
    assert (name, loaded.draft_tokens) == ("specdec", draft_tokens)
    assert_same(deep, loaded, drafter)


def test_it_decodes(deep: Target, tmp_path: Path) -> None:
    drafter, _ = load_any(write(tmp_path / "d", folders.eagle3_modelopt(folders.eagle3(deep))), deep)
    assert generate(deep, drafter, IDS, 30).token_ids == generate(deep, None, IDS, 30).token_ids


def test_it_has_the_targets_type(base_folder: Path, tmp_path: Path) -> None:
    narrow = Target.from_pretrained(base_folder, dtype="bfloat16", device="cpu")
    folder = write(tmp_path / "d", folders.eagle3_speculators(folders.eagle3(narrow, aux_layers=[1, 2])))
    drafter, _ = load_any(folder, narrow)
    assert {p.dtype for p in drafter.parameters()} == {torch.bfloat16}
    assert drafter.state_dict()["d2t"].dtype is torch.int64


@pytest.mark.parametrize("case", ["medusa, ModelOpt", "eagle3, speculators"])
def test_shards_are_read_as_one(deep: Target, tmp_path: Path, case: str) -> None:
    made, lay_out, _, _ = CASES[case]
    drafter = made(deep).eval()
    sharded(tmp_path / "d", lay_out(drafter))
    assert_same(deep, load_any(tmp_path / "d", deep)[0], drafter)


def sharded(folder: Path, laid_out: Folder) -> None:
    """Every other tensor in the second of two files."""
    config, tensors = laid_out
    write(folder, (config, {}))
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in (0, 1):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        part = {name: tensors[name].contiguous().clone() for name in sorted(tensors)[number::2]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


WITH_EMBEDDING: dict[str, Callable[[Target], Folder]] = {
    "eagle": lambda t: folders.eagle_vllm(folders.eagle(t)),
    "eagle3": lambda t: folders.eagle3_speculators(folders.eagle3(t)),
}


@pytest.mark.parametrize("method", WITH_EMBEDDING)
def test_a_copy_of_the_bases_embedding_is_not_held_twice(deep: Target, tmp_path: Path, method: str) -> None:
    """Rounded to another type it is still a copy; one changed number makes it the drafter's own."""
    config, tensors = WITH_EMBEDDING[method](deep)
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"].half()
    assert "embed_tokens.weight" not in load_any(write(tmp_path / "d", (config, tensors)), deep)[0].state_dict()
    tensors["embed_tokens.weight"] = deep.embedding_weight.clone()
    tensors["embed_tokens.weight"][7, 7] += 1
    own = load_any(write(tmp_path / "d", (config, tensors)), deep)[0]
    assert torch.equal(own.state_dict()["embed_tokens.weight"], tensors["embed_tokens.weight"])


@pytest.mark.parametrize("method", WITH_EMBEDDING)
def test_an_embedding_of_its_own_is_used(deep: Target, tmp_path: Path, method: str) -> None:
    """The drafter with the base's rows swapped says behind token a what the other says behind token b."""
    config, tensors = WITH_EMBEDDING[method](deep)
    plain, _ = load_any(write(tmp_path / "plain", (config, tensors)), deep)
    order = torch.randperm(deep.vocab_size, generator=torch.Generator().manual_seed(1))
    tensors["embed_tokens.weight"] = deep.embedding_weight[order]
    own, _ = load_any(write(tmp_path / "own", (config, tensors)), deep)
    out = deep.forward(torch.tensor([IDS]), layers=plain.aux_layers)
    auxiliary = None if out.auxiliary is None else out.auxiliary[0, -1:]

    def behind(drafter: Drafter, token: int) -> int:
        state = DraftState()
        state.observe(torch.tensor([token]), out.hidden[0, -1:], auxiliary)
        return int(drafter.propose(state, 1).token_ids)

    said = [behind(own, token) for token in range(60)]
    assert said == [behind(plain, int(order[token])) for token in range(60)]
    assert said != [behind(plain, token) for token in range(60)]
    own.save_pretrained(tmp_path / "ours")
    again = load_any(tmp_path / "ours", deep)[0].state_dict()["embed_tokens.weight"]
    assert torch.equal(again, tensors["embed_tokens.weight"])


def test_published_heads_of_which_the_configuration_counts_too_few(deep: Target, tmp_path: Path) -> None:
    config, tensors = folders.medusa_original(folders.medusa(deep))
    config["medusa_num_heads"] = 2
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].draft_tokens == 3


def test_older_weights_of_rotary_tables_are_no_weights(deep: Target, tmp_path: Path) -> None:
    config, tensors = folders.eagle_vllm(folders.eagle(deep))
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    load_any(write(tmp_path / "d", (config, tensors)), deep)


def test_modelopt_counts_layers_from_0(deep: Target, tmp_path: Path) -> None:
    """The same list means other states in vLLM's layout; unsaid, both read the same."""
    config, tensors = folders.eagle3_modelopt(folders.eagle3(deep, aux_layers=[2, 4, 5]))
    config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [5, 0, 3]
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].aux_layers == (1, 4, 6)
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [5, 0, 3], "use_aux_hidden_state": True}
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].aux_layers == (0, 3, 5)
    config["eagle_config"] = {"use_aux_hidden_state": True}
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].aux_layers == (2, 4, 5)
    config["eagle_config"]["next_layer_regular"] = True
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].aux_layers == (2, 4, 5)


def test_a_vllm_folder_with_the_original_names(deep: Target, tmp_path: Path) -> None:
    """vLLM renames tensors, and takes any key with `num` and `heads`, or `layers`, in it."""
    heads = folders.medusa(deep)
    config, _ = folders.medusa_vllm(heads)
    del config["num_heads"], config["num_hidden_layers"]
    config |= {"medusa_num_heads": 3, "medusa_num_layers": 2}
    named = {f"medusa_heads.{n}": t for n, t in folders.medusa_original(heads)[1].items()}
    loaded, layout = load_any(write(tmp_path / "d", (config, named)), deep)
    assert layout == "vLLM"
    assert_same(deep, loaded, heads)


@pytest.mark.parametrize("nested", [False, True])
def test_one_norm_before_fc_in_vllms_layout(deep: Target, tmp_path: Path, nested: bool) -> None:
    config, tensors = folders.eagle3_vllm(folders.eagle3(deep, aux_layers=[2, 4, 5]))
    config |= {"eagle_config": {"norm_before_fc": True}} if nested else {"norm_before_fc": True}
    tensors["input_norm.weight"] = torch.ones(3 * deep.hidden_size)
    assert load_any(write(tmp_path / "d", (config, tensors)), deep)[0].checkpoint_config()["norm_before_fc"]


def test_the_shared_output_layer_may_be_the_first_heads(deep: Target, tmp_path: Path) -> None:
    """vLLM takes it from there too."""
    heads = folders.medusa(deep, shared=True)
    config, tensors = folders.medusa_vllm(heads)
    tensors["lm_heads.0.weight"] = tensors.pop("lm_head.weight")
    assert_same(deep, load_any(write(tmp_path / "d", (config, tensors)), deep)[0], heads)
