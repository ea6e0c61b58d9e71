"""Registration against a real MLflow: versions, gates, aliases, and what a killed attempt leaves."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.config import Params
from specdec.errors import DataError, ModelError
from specdec.io import sha256_file
from specdec.tracking import model, promotion
from specdec.tracking.lineage import lineage
from specdec.tracking.proposal import waiting
from specdec.tracking.register import register
from specdec.tracking.store import Store
from tests.tracking.example import params, register_settings, settings, write_drafter, write_figures, write_json

NAME = "specdec-base"


def silent(_line: str) -> None:
    pass


def aliases(store: Store) -> dict[str, str]:
    return promotion.aliases_of(store, NAME)


def versions(store: Store) -> list[Any]:
    return list(store.client.search_model_versions(f"name = '{NAME}'"))


def test_every_drafter_becomes_a_version_and_the_fastest_the_champion(project: Path, store: Store) -> None:
    write_figures(project, "two", length=1.7, speedup=1.5)
    receipt = register(params(), silent)
    assert receipt["model"] == NAME
    one, two = receipt["versions"]["one"], receipt["versions"]["two"]
    assert (two["promoted"], two["aliases"]) == (True, ["champion"])
    assert (one["promoted"], one["aliases"]) == (False, ["challenger"])
    assert "two (version 2) comes first" in one["reason"]
    json.dumps(receipt)


def test_a_version_carries_lineage_figures_and_no_secret(project: Path, store: Store) -> None:
    register(params(), silent)
    version = store.client.get_model_version(NAME, "1")
    tags = version.tags
    assert tags["specdec.base.weights"] == "a" * 64
    assert tags["specdec.base.tokenizer"] == "b" * 64
    assert tags["specdec.data"] == "train=" + "e" * 64
    assert tags["specdec.method"] == "medusa"
    assert tags["specdec.git.commit"] == "none"
    assert float(tags["specdec.acceptance_length.low"]) == pytest.approx(1.7)
    assert tags["specdec.gate.lossless"].startswith("passed")
    assert tags["specdec.dataset.url"] == "https://***@host/x"
    assert "hunter2" not in str(tags) + version.description
    assert "1.800 [1.700, 1.900]" in version.description


def test_the_checkpoint_and_the_report_are_in_the_model(project: Path, store: Store) -> None:
    register(params(), silent)
    model_id = store.client.get_model_version(NAME, "1").source.removeprefix("models:/")
    listed = store.client.list_logged_model_artifacts(model_id, "artifacts/drafter")
    assert {Path(f.path).name for f in listed} == {"config.json", "model.safetensors", "specdec.json"}
    everything = [p.name for p in (project / "mlartifacts").rglob("*")]
    assert "report.html" in everything
    assert "MLmodel" in everything
    assert not [name for name in everything if name.endswith((".pkl", ".pyc")) or name == "__pycache__"]


LOCK = """
stages:
  synthesize:
    params: {params.yaml: {synthesize.engine_args: [--api-key, hunter2]}}
    outs: [{path: data/synthetic, md5: abc.dir}]
"""


def test_a_version_carries_what_it_takes_to_make_it_again(project: Path, store: Store) -> None:
    (project / "dvc.lock").write_text(LOCK)
    register(params(), silent)
    recipe = stored_model(project, store, "1") / "artifacts/recipe"
    found = {file.name: file.read_text() for file in recipe.iterdir()}
    assert Params.model_validate(yaml.safe_load(found["params.yaml"])) == params()
    assert yaml.safe_load(found["dvc.lock"])["stages"]["synthesize"]["outs"][0]["md5"] == "abc.dir"
    assert json.loads(found["lineage.json"]) == lineage(project)
    assert f"torch=={importlib.metadata.version('torch')}" in found["environment.txt"].splitlines()
    assert found["environment.txt"].startswith(f"# python {platform.python_version()}, ")
    assert "hunter2" not in str(found)
    tags = store.client.get_model_version(NAME, "1").tags
    assert tags["specdec.input.data/synthetic"] == "abc.dir"
    assert tags["specdec.dataset.revision"] == "d" * 40


def test_a_version_has_a_signature_and_an_example(project: Path, store: Store) -> None:
    from mlflow.models import Model

    register(params(), silent)
    folder = stored_model(project, store, "1")
    described = Model.load(str(folder))
    assert {"text", "tokens", "steps", "acceptance_length"} == set(described.signature.outputs.input_names())
    example = described.load_input_example(str(folder))
    assert "How do I open a file?" in str(example)
    assert described.load_input_example_params(str(folder)) == {"max_new_tokens": 32}


def stored_model(project: Path, store: Store, version: str) -> Path:
    source = store.client.get_model_version(NAME, version).source.removeprefix("models:/")
    (folder,) = project.glob(f"mlartifacts/**/{source}/artifacts")
    return folder


def test_registering_the_same_bytes_again_changes_nothing(project: Path, store: Store) -> None:
    first = register(params(), silent)
    second = register(params(), silent)
    assert len(versions(store)) == 2
    assert first["versions"]["one"]["version"] == second["versions"]["one"]["version"]
    assert first["versions"]["one"]["run_id"] != "0" * 32
    assert aliases(store) == {"champion": "1", "challenger": "2"}


def test_a_second_evaluation_updates_the_version(project: Path, store: Store) -> None:
    register(params(), silent)
    write_figures(project, "one", length=1.9)
    register(params(), silent)
    version = store.client.get_model_version(NAME, "1")
    assert float(version.tags["specdec.acceptance_length.value"]) == pytest.approx(1.9)
    assert "1.900 [1.800, 2.000]" in version.description
    assert len(versions(store)) == 2


def test_the_card_points_to_the_latest_report_and_the_model_keeps_the_first(project: Path, store: Store) -> None:
    report = project / "reports/one/report.html"
    report.write_text("first")
    register(params(), silent)
    report.unlink()  # the model holds a hard link, and a stage writes a new file
    report.write_text("second")
    run_id = register(params(), silent)["versions"]["one"]["run_id"]
    version = store.client.get_model_version(NAME, "1")
    assert f"in the artifacts of run `{run_id}`, under `report`" in version.description
    assert "`artifacts/evaluation`, inside the model, is the report as it was when" in version.description
    latest = store.client.download_artifacts(run_id, "report/report.html")
    assert Path(latest).read_text() == "second"
    kept = [p.read_text() for p in (project / "mlartifacts").rglob("artifacts/evaluation/report.html")]
    assert "first" in kept
    assert "second" not in kept


def test_what_a_killed_writer_left_is_neither_stored_nor_counts(project: Path, store: Store) -> None:
    bundled = params(register=register_settings(bundle_base=True))
    first = register(bundled, silent)
    for folder in ("models/drafters/one", "models/base", "reports/one"):
        (project / folder / ".model.safetensors.123.part").write_text("half")
        (project / folder / ".plots.x.part").mkdir()
        (project / folder / ".plots.x.part/plot.png").write_text("half")
    assert register(bundled, silent)["versions"]["one"]["content"] == first["versions"]["one"]["content"]
    write_figures(project, "one", speedup=1.6)
    write_drafter(project, "one", weights="new")
    assert register(bundled, silent)["versions"]["one"]["version"] == "3"
    stored = list((project / "mlartifacts").rglob("*"))
    assert not [path for path in stored if ".part" in str(path)]
    assert len([path for path in stored if path.name == "model.safetensors"]) == 3


@pytest.mark.parametrize("turned_on", [True, False])
def test_another_packing_is_another_version_and_takes_over(project: Path, store: Store, turned_on: bool) -> None:
    register(params(register=register_settings(bundle_base=not turned_on)), silent)
    toggled = params(register=register_settings(bundle_base=turned_on))
    receipt = register(toggled, silent)["versions"]["one"]
    assert (receipt["version"], receipt["aliases"]) == ("3", ["champion"])
    assert "the drafter of version 1, packed in another way" in receipt["reason"]
    model_id = store.client.get_model_version(NAME, "3").source.removeprefix("models:/")
    listed = store.client.list_logged_model_artifacts(model_id, "artifacts")
    assert ("artifacts/base" in {f.path for f in listed}) is turned_on
    assert register(toggled, silent)["versions"]["one"]["version"] == "3"


def test_another_dtype_is_another_version(project: Path, store: Store) -> None:
    evaluate = {**settings()["evaluate"], "dtype": "float32"}
    register(params(evaluate=evaluate), silent)
    receipt = register(params(evaluate={**evaluate, "dtype": "bfloat16"}), silent)["versions"]["one"]
    assert receipt["version"] == "3"
    model_id = store.client.get_model_version(NAME, "3").source.removeprefix("models:/")
    (reference,) = (project / "mlartifacts").rglob(f"{model_id}/artifacts/artifacts/base.json")
    assert json.loads(reference.read_text())["dtype"] == "bfloat16"


def test_a_better_training_replaces_the_champion(project: Path, store: Store) -> None:
    register(params(), silent)
    write_drafter(project, "one", weights="better")
    write_figures(project, "one", length=2.2, speedup=1.6)
    receipt = register(params(), silent)["versions"]["one"]
    assert receipt["version"] == "3"
    assert "its speedup 1.600 beats 1.300 of version 1" in receipt["reason"]
    assert aliases(store)["champion"] == "3"
    assert aliases(store)["previous"] == "1"


def test_a_worse_training_is_refused_and_stays_challenger(project: Path, store: Store) -> None:
    register(params(), silent)
    write_drafter(project, "one", weights="worse")
    write_figures(project, "one", length=2.9, speedup=1.25)
    write_figures(project, "two", speedup=1.2)
    receipt = register(params(), silent)["versions"]["one"]
    assert not receipt["promoted"]
    assert "better_than_champion 1.250 (missed 1.300)" in receipt["reason"]
    assert aliases(store) == {"champion": "1", "challenger": "3"}


def test_a_champion_that_was_not_measured_on_these_prompts_is_not_replaced(project: Path, store: Store) -> None:
    register(params(), silent)
    (project / "data/prompts/test.jsonl").write_text("other prompts\n")
    write_drafter(project, "one", weights="new")
    write_figures(project, "one", length=1.9, speedup=9.0)
    write_figures(project, "two", length=1.4, speedup=1.2)
    receipt = register(params(), silent)["versions"]["one"]
    assert not receipt["promoted"]
    assert "the champion, version 1, was not measured on these prompts" in receipt["reason"]
    assert aliases(store)["champion"] == "1"


def test_a_champion_of_another_base_is_replaced(project: Path, store: Store) -> None:
    register(params(), silent)
    store.client.set_model_version_tag(NAME, "1", "specdec.base.weights", "f" * 64)
    (project / "data/prompts/test.jsonl").write_text("other prompts\n")
    write_drafter(project, "one", weights="new")
    write_figures(project, "one", length=1.5)
    write_figures(project, "two", length=1.4, speedup=1.2)
    receipt = register(params(), silent)["versions"]["one"]
    assert receipt["promoted"]
    assert "version 1 is for another base" in receipt["reason"]


def test_a_category_may_have_any_name(project: Path, store: Store) -> None:
    """MLflow takes few characters in a tag's name, and two names that differ in others stay two."""
    register(params(), silent)
    write_drafter(project, "one", weights="new")
    names = ("C++", "C--", "Q&A, (python)", "x" * 300)
    figures = {"acceptance_length": {"value": 1.5, "low": 1.4, "high": 1.6}}
    metrics = json.loads((project / "metrics/evaluate/one.json").read_text())
    write_json(project / "metrics/evaluate/one.json", metrics | {"categories": dict.fromkeys(names, figures)})
    compared(project, 1.2, {"C++": 1.0, "C--": 9.0, "Q&A, (python)": 1.0, "x" * 300: 1.0})
    receipt = register(params(), silent)["versions"]["one"]
    assert "not promoted: category C-- 1.600 (missed 9.000)" in receipt["reason"]
    tags = store.client.get_model_version(NAME, receipt["version"]).tags
    told = sorted(v for k, v in tags.items() if k.startswith("specdec.gate.category"))
    assert len(told) == 4
    assert sum(v.startswith("missed") for v in told) == 1


def test_a_gate_that_is_asked_for_no_more_is_gone(project: Path, store: Store) -> None:
    register(params(register=register_settings(require_engine=True)), silent)
    assert "specdec.gate.tried_in_engine" in store.client.get_model_version(NAME, "1").tags
    register(params(), silent)
    assert "specdec.gate.tried_in_engine" not in store.client.get_model_version(NAME, "1").tags


def test_what_misses_a_gate_now_waits_no_longer(project: Path, store: Store) -> None:
    asks = register_settings(promote="approval")
    register(params(register=asks), silent)
    assert waiting(project) == "1"
    register(params(register=asks | {"min_speedup": 5.0}), silent)
    assert waiting(project) is None


def compared(project: Path, speedup: float, categories: dict[str, float], **other: Any) -> None:
    """What the stage `compare` says of a champion that it measured on this run's prompts."""
    champion = {"model": "specdec-base", "version": "1", "row": "champion (version 1)"}
    champion["prompts"] = sha256_file(project / "data/prompts/test.jsonl")
    found = {k: {"acceptance_length": {"value": v, "low": v - 0.1, "high": v + 0.1}} for k, v in categories.items()}
    row = {"name": champion["row"], "figures": {"speedup": {"value": speedup}, "categories": found}}
    write_json(project / "comparison/comparison.json", {"champion": champion | other, "rows": [row]})


OTHER_FILES: list[dict[str, str | None]] = [{"version": "2"}, {"prompts": "0" * 64}, {"model": "mine"}, {"row": None}]


@pytest.mark.parametrize(
    ("speedup", "promoted", "words"),
    [
        (1.25, True, "its speedup 1.300 beats 1.250 of version 1"),
        (1.35, False, "better_than_champion 1.300 (missed 1.350)"),
    ],
)
def test_on_new_prompts_the_champion_counts_as_it_was_measured_there(
    project: Path, store: Store, speedup: float, promoted: bool, words: str
) -> None:
    """Also in a retraining with new prompts nobody becomes champion by being measured elsewhere."""
    new_prompts(project)
    compared(project, speedup, {})
    receipt = register(params(), silent)["versions"]["one"]
    assert (receipt["promoted"], words in receipt["reason"]) == (promoted, True)


def test_no_category_is_worse_there(project: Path, store: Store) -> None:
    new_prompts(project)
    metrics = json.loads((project / "metrics/evaluate/one.json").read_text())
    metrics["categories"] = {"latest: c": {"acceptance_length": {"value": 1.5, "low": 1.4, "high": 1.6}}}
    write_json(project / "metrics/evaluate/one.json", metrics)
    compared(project, 1.2, {"latest: c": 1.61})
    receipt = register(params(), silent)["versions"]["one"]
    assert "not promoted: category latest: c 1.600 (missed 1.610)" in receipt["reason"]


@pytest.mark.parametrize("other", OTHER_FILES, ids=str)
def test_a_comparison_that_is_about_something_else_does_not_count(
    project: Path, store: Store, other: dict[str, str | None]
) -> None:
    new_prompts(project)
    compared(project, 9.0, {}, **other)
    assert "was not measured on these prompts" in register(params(), silent)["versions"]["one"]["reason"]


def new_prompts(project: Path) -> None:
    """Version 1 reigns; then a new training, evaluated on other prompts."""
    register(params(), silent)
    (project / "data/prompts/test.jsonl").write_text("other prompts\n")
    write_drafter(project, "one", weights="new")
    write_figures(project, "two", speedup=1.1)


def test_a_champion_whose_figures_are_no_numbers_cannot_be_compared(project: Path, store: Store) -> None:
    register(params(), silent)
    store.client.set_model_version_tag("specdec-base", "1", "specdec.speedup.value", "fast")
    write_drafter(project, "one", weights="new")
    write_figures(project, "two", speedup=1.1)
    receipt = register(params(), silent)["versions"]["one"]
    assert "was not measured on these prompts" in receipt["reason"]


def test_nothing_is_promoted_below_the_floor(project: Path, store: Store) -> None:
    strict = params(register=register_settings(min_speedup=5.0))
    receipt = register(strict, silent)
    page = Path(
        store.client.download_artifacts(receipt["versions"]["one"]["run_id"], "report/decision.md")
    ).read_text()
    assert page.startswith("# one, version 1 of specdec-base: not promoted\n")
    assert "| speedup | MISSED | speedup 1.200 (missed 5.000) |" in page
    assert "| lossless | passed | lossless true (needs true) |" in page
    assert not any(v["promoted"] for v in receipt["versions"].values())
    assert "speedup 1.200 (missed 5.000)" in receipt["versions"]["one"]["reason"]
    assert set(aliases(store)) == {"challenger"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, and the next attempt starts afresh."""


# Every kind of write: (method of MLflow's client, which call of it, whether a champion is being replaced).
WRITES = [
    ("create_logged_model", 1, False),
    ("log_model_artifacts", 1, False),
    ("finalize_logged_model", 1, False),
    ("log_outputs", 1, False),
    ("create_model_version", 1, False),
    ("create_model_version", 2, False),
    ("set_model_version_tag", 1, False),
    ("set_registered_model_alias", 1, False),  # challenger
    ("set_registered_model_alias", 2, False),  # champion
    ("set_registered_model_alias", 1, True),  # previous
    ("set_registered_model_alias", 2, True),  # champion
]
FEW_WRITES = [WRITES[1], WRITES[5], WRITES[10]]


@pytest.mark.parametrize(
    ("write", "call", "replacing"),
    [case if case in FEW_WRITES else pytest.param(*case, marks=pytest.mark.soak) for case in WRITES],
)
def test_killed_before_any_write_it_completes_next_time(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, write: str, call: int, replacing: bool
) -> None:
    if replacing:
        register(params(), silent)
        write_drafter(project, "one", weights="better")
        write_figures(project, "one", length=2.2, speedup=1.6)
    with monkeypatch.context() as patch:
        dies_at(patch, write, call)
        with pytest.raises(Killed):
            register(params(), silent)
    check_aliases_point_to_whole_versions(store)
    register(params(), silent)
    contents = [v.tags[model.CONTENT] for v in versions(store)]
    assert len(contents) == len(set(contents)) == 2 + replacing
    after = {"champion": "3", "previous": "1", "challenger": "2"}
    assert aliases(store) == (after if replacing else {"champion": "1", "challenger": "2"})
    check_aliases_point_to_whole_versions(store)


def dies_at(patch: pytest.MonkeyPatch, write: str, call: int) -> None:
    """The `call`-th use of this method of MLflow's client kills its caller instead."""
    from mlflow import MlflowClient

    real, calls = getattr(MlflowClient, write), []

    def method(*arguments: Any, **named: Any) -> Any:
        calls.append(write)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **named)

    patch.setattr(MlflowClient, write, method)


def check_aliases_point_to_whole_versions(store: Store) -> None:
    for version in aliases(store).values():
        found = store.client.get_model_version(NAME, version)
        listed = store.client.list_logged_model_artifacts(found.source.removeprefix("models:/"), "artifacts/drafter")
        assert "model.safetensors" in {Path(f.path).name for f in listed}


def test_a_version_whose_files_are_gone_is_made_again(project: Path, store: Store) -> None:
    register(params(), silent)
    for file in (project / "mlartifacts").rglob("artifacts/drafter/model.safetensors"):
        file.unlink()
    assert register(params(), silent)["versions"]["one"]["version"] == "3"


def test_the_base_travels_when_it_is_asked_to(project: Path, store: Store) -> None:
    register(params(register=register_settings(bundle_base=True)), silent)
    model_id = store.client.get_model_version(NAME, "1").source.removeprefix("models:/")
    assert "config.json" in {
        Path(f.path).name for f in store.client.list_logged_model_artifacts(model_id, "artifacts/base")
    }


def test_what_is_missing_is_named(project: Path, store: Store) -> None:
    (project / "models/drafters/two/model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"two/model\.safetensors is missing"):
        register(params(), silent)


def test_a_drafter_that_vllm_would_misread_is_not_registered(project: Path, store: Store) -> None:
    config = project / "models/drafters/two/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"medusa_num_heads": 3}))
    with pytest.raises(
        ModelError, match=r"^two is none .* not registered: .*two/config\.json: medusa_num_heads is 3"
    ):
        register(params(), silent)
    assert not [version for version in versions(store) if "two" in str(version.tags)]


def test_a_missing_figure_is_named(project: Path, store: Store) -> None:
    (project / "metrics/evaluate/one.json").write_text('{"lossless": true}')
    with pytest.raises(DataError, match=r"evaluate/one\.json lacks a figure"):
        register(params(), silent)
