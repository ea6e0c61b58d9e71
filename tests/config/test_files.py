"""Settings: what is refused, and that the message names the key."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from specdec.config import load_params, profile_names, use_profile
from specdec.errors import ConfigError
from tests.settings import training

ROOT = Path(__file__).resolve().parents[2]


def change(tmp_path: Path, key: str, value: object) -> Path:
    """params.yaml with one (possibly new) key changed; `__delete__` removes it."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    *parents, last = key.split(".")
    place = content
    for part in parents:
        place = place[part]
    if value == "__delete__":
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def plain(url: str) -> dict[str, object]:
    return {"url": url, "revision": None, "file": None, "max_bad_share": 0.01}


def test_the_committed_settings_are_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.clone_data.url == "embedded"
    assert params.drafters["medusa"].num_heads == 2


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("clone_dataa", {}, "clone_dataa: unknown key; allowed here: benchmark, clone_data, "),
        (
            "synthesize.sampling.temprature",
            1.0,
            "synthesize.sampling.temprature: unknown key; allowed here: cut_off, ",
        ),
        (
            "drafters.medusa.heads",
            2,
            "drafters.medusa.heads: unknown key; allowed here: head_decay, loss, method",
        ),
        (
            "drafters.medusa.training.gradient_checkpointing",
            True,
            "drafters.medusa: training.gradient_checkpointing must be false",
        ),
        ("drafters.medusa.training.lr", 2, "drafters.medusa.training.lr: unknown key; allowed here: "),
        ("drafters.medusa.num_heads", "2", "drafters.medusa.num_heads: "),
        ("drafters.medusa.num_heads", 0, "drafters.medusa.num_heads: "),
        ("drafters.medusa.method", "medussa", "drafters.medusa.method: "),
        ("drafters", {}, "drafters: "),
        ("synthesize.sampling.top_p", 0.5, "synthesize.sampling: at temperature 0 alone top_p,"),
        ("synthesize.max_model_len", 64, "synthesize.max_model_len is 64, below"),
        ("prepare_prompts.test_share", 0.95, "validation_share + test_share must be below 1"),
        ("fetch_base.revision", "main", "`revision` must be null"),
        ("fetch_base.source", "org/model", "the section `embedded` goes with"),
        ("clone_data.url", "__delete__", "clone_data.url: missing"),
        ("clone_data.url", "https://me:secret@host/x", "clone_data.url: "),
        ("clone_data.url", "https://ghp_secret@github.com/me/data", "clone_data.url: "),
        ("clone_data.revision", None, "clone_data: `revision` and `file` go together"),
        ("clone_data", plain("embedded"), "clone_data: `url` is embedded, which needs a `revision`"),
        (
            "clone_data",
            plain("https://host/data"),
            "clone_data: `url` is https://host/data, which needs a `revision`",
        ),
        ("clone_data", plain("git@host:data"), "clone_data: `url` is git@host:data, which needs a `revision`"),
        ("prepare_prompts.near_duplicate", 0.0, "prepare_prompts.near_duplicate: "),
        ("prepare_prompts.evaluation_files", [{"path": "a", "sha256": "0"}], "evaluation_files.0.sha256: "),
        (
            "prepare_prompts.evaluation_files",
            [{"path": "a", "sha256": c * 64} for c in "01"],
            "prepare_prompts.evaluation_files: a path stands twice",
        ),
        ("synthesize.engine_args", ["--api-key=secret"], "synthesize.engine_args: a key here ends up"),
        (
            "synthesize.engine_args",
            ["--port", "80"],
            "engine_args: --port cannot stand here: a server that the stage",
        ),
        ("synthesize.engine_args", ["--port=80"], "starts takes SPECDEC_PORT, or any free port"),
        ("synthesize.engine_args", ["--host", "::"], "synthesize.engine_args: --host cannot stand here: "),
        ("synthesize.engine_args", ["--model", "x"], "--model cannot stand here: the server serves the base of"),
        ("benchmark.engine_args", ["--port=80"], "benchmark.engine_args: --port cannot stand here"),
        ("benchmark.engine_args", ["--speculative-config", "{}"], "the drafter is that of the stage"),
        ("benchmark.engine_args", ["--api-key=secret"], "benchmark.engine_args: a key here ends up"),
        ("benchmark.concurrencies", [], "benchmark.concurrencies: "),
        ("benchmark.concurrencies", [4, 1, 4], "benchmark.concurrencies: a number stands twice"),
        ("benchmark.draft_lengths", [0], "benchmark.draft_lengths.0: "),
        ("benchmark.max_new_tokens", 512, "benchmark: max_new_tokens is 512: it must be below max_model_len"),
        ("benchmark.engine", "sglang", "benchmark.engine: "),
        ("register.max_engine_difference", -0.1, "register.max_engine_difference: "),
        ("drafters.medusa.training.epochs", float("inf"), "drafters.medusa.training.epochs: "),
        ("drafters.medusa.training.vllm_args", ["-tp=2"], "vllm_args have no effect with features online: set "),
        ("drafters.medusa.training.vllm_args", ["--api-key=secret"], "training.vllm_args: a key here ends up"),
        ("drafters.medusa.training.vllm_args", ["--port=80"], "training.vllm_args: --port cannot stand here"),
        ("drafters.medusa.training.vllm_args", ["--kv_transfer_config.kv_role=x"], "vllm_args: --kv-transfer-config"),
        ("drafters.medusa.training.vllm_args", ["-pp", "2"], "training.vllm_args: -pp cannot stand here"),
        ("synthesize.engine_args", ["--speculative_config.method=x"], "engine_args: --speculative-config cannot"),
        (
            "drafters.medusa.training",
            training(features="vllm", shard_base=True),
            "shard_base: processes write cached features each at its own pace: set features to online",
        ),
        ("prepare_prompts.validation_share", 0.0, "prepare_prompts.validation_share: "),
        ("evaluate.confidence", True, "evaluate.confidence: "),
        ("evaluate.file_prompts", 0, "evaluate.file_prompts: "),
        ("evaluate.file_prompts", "__delete__", "evaluate.file_prompts: missing"),
    ],
)
def test_bad_settings_are_refused_by_the_path_of_the_key(tmp_path: Path, key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(change(tmp_path, key, value))
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["data/rows.json", "/data/rows.json", "~/rows.json", "file:///data/rows.json"])
def test_a_plain_file_needs_no_revision(tmp_path: Path, url: str) -> None:
    assert load_params(change(tmp_path, "clone_data", plain(url))).clone_data.file is None


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    file = change(tmp_path, "drafters.medusa.training.seed", 7)
    file.write_text(file.read_text().replace("learning_rate: 0.004", "learning_rate: 1e-3"))
    assert load_params(file).drafters["medusa"].training.learning_rate == 1e-3


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there: run this in the root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: {b: 1}\nc: 2\na: {b: 2}\n")
    with pytest.raises(ConfigError, match="the key 'a' stands twice"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", profile_names(ROOT / "profiles"))
def test_every_profile_gives_valid_settings(tmp_path: Path, name: str) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert use_profile(name, tmp_path / "params.yaml", ROOT / "profiles")
    assert load_params(tmp_path / "params.yaml").fetch_base.source != "embedded"


@pytest.mark.parametrize("name", profile_names(ROOT / "profiles"))
def test_every_profile_pins_the_commits_of_dataset_and_base(tmp_path: Path, name: str) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    use_profile(name, tmp_path / "params.yaml", ROOT / "profiles")
    params = load_params(tmp_path / "params.yaml")
    for revision in (params.clone_data.revision, params.fetch_base.revision):
        assert re.fullmatch("[0-9a-f]{40}", revision or "")


def test_what_a_profile_wrote_keeps_its_edits(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    use_profile("tinyllama-daring-anteater", file, ROOT / "profiles")
    pinned = load_params(file).clone_data.revision
    assert pinned
    file.write_text(file.read_text().replace(f"revision: {pinned}", "revision: 3f2c"))
    assert not use_profile("tinyllama-daring-anteater", file, ROOT / "profiles")
    assert load_params(file).clone_data.revision == "3f2c"
    assert use_profile("qwen2.5-7b-daring-anteater", file, ROOT / "profiles")
    assert load_params(file).clone_data.revision == pinned


def test_a_profile_that_is_not_valid_changes_nothing(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    before = (tmp_path / "params.yaml").read_bytes()
    (tmp_path / "bad.yaml").write_text("evaluate: {max_new_tokens: 8}\n")
    with pytest.raises(ConfigError, match=r"evaluate\.repeats: missing"):
        use_profile("bad", tmp_path / "params.yaml", tmp_path)
    with pytest.raises(ConfigError, match="no profile 'good'"):
        use_profile("good", tmp_path / "params.yaml", tmp_path)
    assert (tmp_path / "params.yaml").read_bytes() == before
