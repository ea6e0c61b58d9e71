"""Versions, promotion by hand and the way back, against a real MLflow."""

import threading
from pathlib import Path

import pytest
from rich.console import Console

from specdec.cli.release import table_of
from specdec.errors import TrackingError
from specdec.tracking import promotion, release
from specdec.tracking.register import register
from specdec.tracking.release import list_versions, promote_by_hand, rollback
from specdec.tracking.store import Store
from tests.cli.process import run
from tests.tracking.example import IDENTITY, params, write_drafter, write_figures, write_json

NAME = "specdec-base"


@pytest.fixture
def registered(project: Path, store: Store) -> Path:
    """Version 1 passes every gate, version 2 is the champion, version 3 misses two."""
    write_figures(project, "two", length=1.7, speedup=1.5)
    register(params(), print)
    write_drafter(project, "one", weights="third")
    write_figures(project, "one", length=1.02, speedup=0.9)
    register(params(), print)
    assert aliases(store) == {"champion": "2", "challenger": "3"}
    return project


def aliases(store: Store) -> dict[str, str]:
    return promotion.aliases_of(store, NAME)


def test_the_versions_newest_first(registered: Path) -> None:
    name, found = list_versions(registered)
    assert name == NAME
    assert [(v.number, v.drafter, v.aliases) for v in found] == [
        ("3", "one", ["challenger"]),
        ("2", "two", ["champion"]),
        ("1", "one", []),
    ]
    assert found[1].speedup == "1.50 [1.40, 1.60]"
    assert found[1].missed == []
    assert found[0].missed[0].startswith("acceptance_length 0.920 (missed 1.000)")


def test_promoted_and_taken_back(registered: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    promote_by_hand(registered, "1", False, print)
    assert aliases(store) == {"champion": "1", "previous": "2", "challenger": "3"}
    assert "version 1 of specdec-base is the champion now; before it was version 2" in capsys.readouterr().out
    tag = store.client.get_model_version(NAME, "1").tags["specdec.promoted_by_hand"]
    assert tag.endswith("UTC, before it was version 2")
    rollback(registered, False, print)
    assert aliases(store) == {"champion": "2", "previous": "1", "challenger": "3"}
    rollback(registered, False, print)
    assert aliases(store) == {"champion": "1", "previous": "2", "challenger": "3"}
    promote_by_hand(registered, "1", False, print)
    assert aliases(store)["previous"] == "2", "promoting the champion changes nothing"


def test_a_missed_gate_is_named_and_can_be_overruled(registered: Path, store: Store) -> None:
    with pytest.raises(TrackingError, match=r"version 3 .* misses a gate: acceptance_length 0\.920 .*: give --force"):
        promote_by_hand(registered, "3", False, print)
    assert aliases(store)["champion"] == "2"
    promote_by_hand(registered, "3", True, print)
    assert aliases(store) == {"champion": "3", "previous": "2"}


def test_another_base_is_refused(registered: Path, store: Store) -> None:
    """The base was fine-tuned since: what was trained on the old one is not for it, to promote or to go back to."""
    promote_by_hand(registered, "1", False, print)
    base = {"source": "embedded", "revision": None, "name": "tiny/base", "identity": IDENTITY | {"weights": "f" * 64}}
    write_json(registered / "models/base/specdec.json", base)
    for change in (
        lambda: promote_by_hand(registered, "2", False, print),
        lambda: rollback(registered, False, print),
    ):
        with pytest.raises(
            TrackingError, match=r"another base \(weights aaaaaaaaaaaa, models/base has ffffffffffff\)"
        ):
            change()
    assert aliases(store)["champion"] == "1"
    rollback(registered, True, print)
    assert aliases(store)["champion"] == "2"


def test_without_its_checkpoint_no_force_helps(registered: Path, store: Store) -> None:
    source = store.client.get_model_version(NAME, "1").source.removeprefix("models:/")
    (weights,) = registered.rglob(f"{source}/artifacts/artifacts/drafter/model.safetensors")
    weights.unlink()
    with pytest.raises(TrackingError, match="version 1 of specdec-base lacks its checkpoint"):
        promote_by_hand(registered, "1", True, print)
    assert aliases(store)["champion"] == "2"


def test_what_is_not_there(registered: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"has no version 9: it has 1, 2, 3"):
        promote_by_hand(registered, "9", True, print)
    with pytest.raises(TrackingError, match="no version before its champion"):
        rollback(registered, False, print)


def test_before_anything_was_registered(project: Path) -> None:
    with pytest.raises(TrackingError, match=r"has no model specdec-base: run the pipeline"):
        list_versions(project)
    (project / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match="there is no registry yet"):
        list_versions(project)
    assert not (project / "mlflow.db").exists()


def test_two_at_once_come_one_after_the_other(
    registered: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is between its look and its write, the other waits: `previous` is who really was before."""
    between, go_on = threading.Event(), threading.Event()
    move = release._move

    def slow(*given: object) -> None:
        between.set()
        assert go_on.wait(20)
        move(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(release, "_move", slow)
    first = threading.Thread(target=promote_by_hand, args=(registered, "1", True, print))
    first.start()
    assert between.wait(20)
    monkeypatch.setattr(release, "_move", move)
    second = threading.Thread(target=promote_by_hand, args=(registered, "3", True, print))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    go_on.set()
    first.join(20)
    second.join(20)
    assert aliases(store) == {"champion": "3", "previous": "1"}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("alias", [1, 2])
def test_one_that_was_killed_half_way_is_finished_and_not_undone(
    registered: Path, store: Store, monkeypatch: pytest.MonkeyPatch, alias: int
) -> None:
    """Before the first alias was moved, or between the two: 1 comes back, and 2 is not forgotten."""
    from mlflow import MlflowClient

    promote_by_hand(registered, "1", False, print)
    promote_by_hand(registered, "2", False, print)
    real, calls = MlflowClient.set_registered_model_alias, []

    def dies(*given: object) -> None:
        calls.append(given)
        if len(calls) == alias:
            raise Killed
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", dies)
        with pytest.raises(Killed):
            rollback(registered, False, print)
    assert aliases(store)["champion"] == "2"
    rollback(registered, False, print)
    assert aliases(store) == {"champion": "1", "previous": "2", "challenger": "3"}
    rollback(registered, False, print)
    assert aliases(store) == {"champion": "2", "previous": "1", "challenger": "3"}


def test_on_the_command_line(registered: Path, store: Store) -> None:
    refused = run(registered, "promote", "3")
    assert refused.returncode == TrackingError("").exit_code
    assert refused.stderr.startswith("specdec: error: version 3 of specdec-base misses a gate")
    promoted = run(registered, "promote", "1")
    assert promoted.returncode == 0, promoted.stderr
    assert promoted.stdout.startswith("version 1 of specdec-base is the champion now")
    assert aliases(store)["champion"] == "1"


def test_the_table(registered: Path) -> None:
    console = Console(width=160)
    with console.capture() as shown:
        console.print(table_of(*list_versions(registered)))
    lines = shown.get().splitlines()
    assert lines[0].strip() == NAME
    assert any("champion" in line and "1.50 [1.40, 1.60]" in line and "passed" in line for line in lines)
    assert "acceptance_length 0.920" in shown.get()
