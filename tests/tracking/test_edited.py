"""A registry that people have edited: what is read out of it is data of others, and nonsense is no figure."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from specdec.cli.release import table_of
from specdec.errors import TrackingError
from specdec.io import sha256_file
from specdec.tracking import promotion
from specdec.tracking.card import categories_of, figure_of, position_rates_of
from specdec.tracking.champion import champion_to_go_on_from, present_champion
from specdec.tracking.checkpoints import fetch_drafter
from specdec.tracking.fetch_version import fetch_version
from specdec.tracking.register import register
from specdec.tracking.release import list_versions, promote_by_hand, rollback
from specdec.tracking.store import Store
from specdec.tracking.watch import promise_of
from tests.tracking.example import params, register_settings, write_drafter, write_figures

NAME = "specdec-base"
CHAMPION = f"models:/{NAME}@champion"


def silent(_line: str) -> None:
    pass


@pytest.fixture
def registered(project: Path, store: Store) -> Path:
    """Version 1 is the champion, version 2 the challenger."""
    register(params(), silent)
    return project


def aliases(store: Store) -> dict[str, str]:
    return promotion.aliases_of(store, NAME)


def change(project: Path, statement: str, *values: str) -> None:
    """What MLflow itself would not do."""
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute(statement, values)
    database.close()


def model_folder(project: Path, store: Store, version: str) -> Path:
    source = store.client.get_model_version(NAME, version).source.removeprefix("models:/")
    (folder,) = project.glob(f"mlartifacts/**/{source}/artifacts/artifacts")
    return folder


def alias_of_nothing(project: Path, alias: str) -> None:
    change(project, "delete from registered_model_aliases where alias = ?", alias)
    change(
        project,
        "insert into registered_model_aliases (workspace, name, alias, version)"
        " select workspace, name, ?, 99 from registered_models",
        alias,
    )


def test_an_alias_of_a_version_that_is_gone_counts_for_nothing(registered: Path, store: Store) -> None:
    for alias in ("champion", "previous", "challenger"):
        alias_of_nothing(registered, alias)
    assert [v.aliases for v in list_versions(registered)[1]] == [[], []]
    with pytest.raises(TrackingError, match="no version before its champion"):
        rollback(registered, False, silent)
    there = f"{CHAMPION} is not in the registry: {NAME} has the aliases none and the versions 1, 2"
    with pytest.raises(TrackingError, match=there):
        fetch_version(CHAMPION, registered / "into")
    assert present_champion(NAME, registered / "into").told.startswith("no champion yet")
    assert champion_to_go_on_from(registered) is None
    promote_by_hand(registered, "2", False, silent)
    assert aliases(store) == {"champion": "2"}
    alias_of_nothing(registered, "champion")
    receipt = register(params(), silent)["versions"]["one"]
    assert (receipt["version"], receipt["aliases"]) == ("1", ["champion"])
    assert "the first champion" in receipt["reason"]


def test_a_deleted_champion_has_a_successor(registered: Path, store: Store) -> None:
    store.client.delete_model_version(NAME, "1")
    assert register(params(), silent)["versions"]["one"]["version"] == "3", "the same bytes, made anew"
    assert aliases(store) == {"champion": "3", "challenger": "2"}


NONSENSE = [
    "fast",
    "",
    "nan",
    "-inf",
    "1e999",
    "9" * 400,
    "[" * 4000,
    "{}",
    "null",
    '{"a": 1}',
    '{"a": [1e999, 0, 1]}',
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_figure(text: str) -> None:
    assert figure_of(text) is None
    assert position_rates_of(text) == []
    assert position_rates_of(f"[{text}]") == []
    assert categories_of(text) == {}


@pytest.mark.parametrize("text", ["fast", "nan", "1e999", "[" * 4000])
def test_a_champion_with_nonsense_in_its_tags_has_to_be_measured_again(
    registered: Path, store: Store, text: str
) -> None:
    for tag in ("speedup.value", "speedup.low", "categories", "position_rates", "gate.lossless", "decision"):
        store.client.set_model_version_tag(NAME, "1", f"specdec.{tag}", text)
    table_of(*list_versions(registered))
    with pytest.raises(TrackingError, match="does not say what it promises: register the drafter again"):
        promise_of("champion", registered)
    write_drafter(registered, "one", weights="new")
    write_figures(registered, "one", speedup=1.25)
    write_figures(registered, "two", speedup=1.2)
    receipt = register(params(), silent)["versions"]["one"]
    assert "the champion, version 1, was not measured on these prompts" in receipt["reason"]
    assert aliases(store)["champion"] == "1"


def test_an_edited_card_and_edited_tags_are_written_again(registered: Path, store: Store) -> None:
    card = store.client.get_model_version(NAME, "1").description
    store.client.update_model_version(NAME, "1", description="mine")
    store.client.delete_model_version_tag(NAME, "1", "specdec.method")
    store.client.delete_model_version_tag(NAME, "1", "specdec.identity")
    with pytest.raises(TrackingError, match=f"models:/{NAME}/1 is damaged in .*: register the drafter again"):
        fetch_version(CHAMPION, registered / "into")  # nothing says which bytes it should have
    register(params(), silent)
    version = store.client.get_model_version(NAME, "1")
    assert (version.description[:100], version.tags["specdec.method"]) == (card[:100], "medusa")
    fetch_version(CHAMPION, registered / "into")


SOURCES = [
    "file:///etc",
    "/etc",
    "../../..",
    "models:/m-1/../../etc",
    "models:/m-0",
    "models:/other/1",
    "s3://no/such",
]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_of_someone_elses_is_never_followed(registered: Path, store: Store, source: str) -> None:
    change(registered, "update model_versions set source = ? where version = 1", source)
    for fetch in (fetch_version, fetch_drafter):
        with pytest.raises(TrackingError, match=r"not registered by specdec|'m-0'"):
            fetch(f"models:/{NAME}/1", registered / "into")
    assert not [p for p in registered.glob("into/**/*") if p.suffix != ".lock"]
    assert "not compared" in present_champion(NAME, registered / "into").told
    promote_by_hand(registered, "2", False, silent)
    with pytest.raises(TrackingError, match="version 1 of specdec-base lacks its checkpoint"):
        promote_by_hand(registered, "1", True, silent)
    assert register(params(), silent)["versions"]["one"]["version"] == "3"


def test_a_logged_model_that_was_deleted_is_made_again(registered: Path, store: Store) -> None:
    """As `mlflow gc` does it: the record is marked, the files go."""
    store.client.delete_logged_model(store.client.get_model_version(NAME, "1").source.removeprefix("models:/"))
    shutil.rmtree(model_folder(registered, store, "1").parent)
    with pytest.raises(TrackingError, match=f"models:/{NAME}/1 has no config.json, model.safetensors"):
        fetch_version(CHAMPION, registered / "into")
    assert register(params(), silent)["versions"]["one"]["version"] == "3"
    assert aliases(store)["champion"] == "3"
    fetch_version(CHAMPION, registered / "into")


def test_a_registered_model_that_goes_while_it_is_registered(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    real = MlflowClient.create_model_version

    def gone(client: Any, name: str, **named: Any) -> Any:
        client.delete_registered_model(name)
        return real(client, name, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", gone)
        with pytest.raises(TrackingError, match=f"refused: .*{NAME}") as caught:
            register(params(), silent)
    assert "\n" not in str(caught.value)
    register(params(), silent)
    assert aliases(store) == {"champion": "1", "challenger": "2"}


CANARY = "cos\nsystem\n(S'touch canary'\ntR."  # a pickle that runs a command
SKLEARN = "flavors: {python_function: {loader_module: mlflow.sklearn, model_path: model.pkl}}\n"


def test_a_version_of_another_flavor_is_not_loaded(registered: Path, store: Store) -> None:
    model = store.client.create_logged_model(store.experiment_id, name="theirs")
    folder = registered / "theirs"
    folder.mkdir()
    (folder / "MLmodel").write_text(SKLEARN)
    (folder / "model.pkl").write_text(CANARY)
    store.client.log_model_artifacts(model.model_id, str(folder))
    store.client.finalize_logged_model(model.model_id, "READY")
    store.client.create_model_version(NAME, f"models:/{model.model_id}")
    store.client.set_registered_model_alias(NAME, "champion", "3")
    with pytest.raises(TrackingError, match=f"models:/{NAME}/3 has no config.json, model.safetensors"):
        fetch_version(CHAMPION, registered / "into")
    with pytest.raises(TrackingError, match=f"models:/{NAME}/3 has no config.json, model.safetensors"):
        fetch_drafter(CHAMPION, registered / "into")
    assert present_champion(NAME, registered / "into").folder is None
    register(params(), silent)
    assert aliases(store) == {"champion": "1", "previous": "3", "challenger": "2"}
    with pytest.raises(TrackingError, match="lacks its checkpoint"):
        rollback(registered, True, silent)
    assert not list(registered.rglob("canary"))


def test_only_what_serving_needs_is_fetched(project: Path, store: Store) -> None:
    register(params(register=register_settings(bundle_base=True)), silent)
    stored = model_folder(project, store, "1")
    for name in (
        "drafter/pytorch_model.bin",
        "drafter/modeling.py",
        "base/model.pkl",
        "base/code.py",
        "drafter/x/y.json",
    ):
        (stored / name).parent.mkdir(exist_ok=True)
        (stored / name).write_text(CANARY)
    (stored.parent / "speculative_model.py").write_text("open('canary', 'w')")
    got = fetch_version(CHAMPION, project / "into")
    assert {p.name for p in got.drafter.iterdir()} == {"config.json", "model.safetensors", "specdec.json"}
    assert got.base is not None
    assert {p.name for p in got.base.iterdir()} == {"config.json", "specdec.json"}
    warm = fetch_drafter(CHAMPION, project / "warm")
    assert {p.name for p in warm.iterdir()} == {"config.json", "model.safetensors", "specdec.json"}
    assert not list(project.rglob("canary"))


NAMES = ["drafter/../../../evil.json", "/etc/hostname", "artifacts/../drafter/config.json", "base/../../x.json", ".."]


def test_names_that_lead_out_of_the_folder_are_not_asked_for(
    registered: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo

    real = MlflowClient.list_logged_model_artifacts

    def hostile(client: Any, model_id: str, path: str | None = None) -> list[FileInfo]:
        return [*real(client, model_id, path), *(FileInfo(f"artifacts/{name}", False, 3) for name in NAMES)]

    monkeypatch.setattr(MlflowClient, "list_logged_model_artifacts", hostile)
    got = fetch_version(CHAMPION, registered / "into")
    there = {str(p.relative_to(registered / "into")) for p in (registered / "into").rglob("*") if p.is_file()}
    drafter = {f"{NAME}-1/drafter/{name}" for name in ("config.json", "model.safetensors", "specdec.json")}
    assert there == {*drafter, f"{NAME}-1/base.json", f"{NAME}-1.lock"}
    assert got.base is None


def test_a_version_that_answers_with_another_name(
    registered: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    version = store.client.get_model_version(NAME, "1")
    version._name = "../../evil"
    monkeypatch.setattr(MlflowClient, "get_model_version", lambda *_given: version)
    with pytest.raises(TrackingError, match=r"answers with '../../evil'"):
        fetch_version(f"models:/{NAME}/1", registered / "into")
    assert not (registered / "into").exists()


def test_a_link_in_the_store_to_a_file_outside(registered: Path, store: Store) -> None:
    """Its content is not what was registered, and is not kept."""
    secret = registered / "secret.json"
    secret.write_text(json.dumps({"key": "hunter2"}))
    config = model_folder(registered, store, "1") / "drafter/config.json"
    config.unlink()
    config.symlink_to(secret)
    for fetch in (fetch_version, fetch_drafter):
        with pytest.raises(TrackingError, match=r"is damaged|outside the artifact directory"):
            fetch(CHAMPION, registered / "into")
    kept = [p for p in (registered / "into").rglob("*") if p.is_file() and sha256_file(p) == sha256_file(secret)]
    assert kept == []


def test_nothing_of_ours_loads_a_model_out_of_the_registry() -> None:
    """`mlflow.pyfunc.load_model` runs code of the model: only a person asks for that."""
    root = Path(__file__).resolve().parents[2]
    for file in [*root.glob("specdec/**/*.py"), *root.glob("stages/*.py"), *root.glob("flows/*.py")]:
        text = file.read_text()
        assert "pyfunc.load_model(" not in text.replace('`mlflow.pyfunc.load_model("models:/', ""), file
        assert "import pickle" not in text, file
        assert "trust_remote_code=True" not in text, file


def test_another_move_that_somebody_left(registered: Path, store: Store) -> None:
    """A move is finished where it still makes sense, and forgotten otherwise."""
    moves = [
        "nonsense",
        "[" * 4000,
        json.dumps({"version": "99", "before": "1"}),
        json.dumps({"version": "2", "before": "3"}),
        json.dumps({"version": 2, "before": "1"}),
        json.dumps({"version": "2", "before": "1", "further": 1}),
    ]
    for text in moves:
        store.client.set_registered_model_tag(NAME, promotion.MOVING, text)
        assert promotion.finish_move(store, NAME) is None
        assert aliases(store) == {"champion": "1", "challenger": "2"}
        assert promotion.MOVING not in store.client.get_registered_model(NAME).tags
    store.client.set_registered_model_tag(NAME, promotion.MOVING, json.dumps({"version": "2", "before": "1"}))
    register(params(), silent)
    assert aliases(store)["champion"] == "2", "the champion of a move that was under way; nothing beats it"
