"""`register.promote: approval`: what waits, what a person sees, and what an answer does, against a real MLflow."""

import json
import shutil
from pathlib import Path

import pytest

from specdec.errors import TrackingError
from specdec.tracking import promotion
from specdec.tracking.announced import mark_told, untold_change
from specdec.tracking.approval import Approval, Overtaken
from specdec.tracking.promotion import MOVING
from specdec.tracking.proposal import propose, waiting
from specdec.tracking.register import register
from specdec.tracking.release import list_versions, promote_by_hand, refuse, rollback
from specdec.tracking.store import Store
from tests.tracking.example import (
    params,
    register_settings,
    write_drafter,
    write_figures,
    write_json,
    write_results,
    write_settings,
)

NAME = "specdec-base"
ASKING = register_settings(promote="approval")


def silent(_: str) -> None:
    pass


def aliases(store: Store) -> dict[str, str]:
    return promotion.aliases_of(store, NAME)


def tags(store: Store, version: str) -> dict[str, str]:
    return dict(store.client.get_model_version(NAME, version).tags)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Path:
    """Version 2 is the champion, version 3 passes every gate and waits; version 4 passes them, too. Made once."""
    root = tmp_path_factory.mktemp("registered") / "project"
    root.mkdir()
    shutil.copy(tables, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SPECDEC_EXECUTION", "DVC_ROOT"):
            patch.delenv(name, raising=False)
        patch.chdir(root)
        write_results(root)
        write_settings(root, register=ASKING)
        write_figures(root, "two", length=1.7, speedup=1.5)
        register(params(), silent)
        write_drafter(root, "one", weights="third")
        write_figures(root, "one", length=1.9, speedup=1.8)
        write_drafter(root, "two", weights="fourth")
        write_figures(root, "two", length=1.9, speedup=1.6)
        register(params(register=ASKING), silent)
    return root


@pytest.fixture
def asked(project: Path, registered: Path) -> Path:
    """A copy of `registered`, whose checkpoints stay where they are."""
    shutil.copytree(registered, project, dirs_exist_ok=True)
    return project


def test_the_first_one_waits_too(project: Path, store: Store) -> None:
    receipt = register(params(register=ASKING), silent)["versions"]["one"]
    assert receipt["reason"] == "passes every gate; the first champion; waits for approval"
    assert (receipt["promoted"], receipt["waits"], receipt["aliases"]) == (False, True, ["challenger"])
    assert aliases(store) == {"challenger": "1"}


def test_the_winner_waits_and_the_champion_stays(asked: Path, store: Store) -> None:
    assert aliases(store) == {"champion": "2", "challenger": "3"}
    assert waiting(asked) == "3"
    told = tags(store, "3")
    assert told["specdec.decision"].endswith("beats 1.500 of version 2; waits for approval")
    assert told["specdec.gate.approval"] == "waits for approval"
    assert "specdec.gate.approval" not in tags(store, "4")
    register(params(register=ASKING), silent)
    assert aliases(store) == {"champion": "2", "challenger": "3"}, "running it again changes nothing"


def test_the_champion_registered_beside_a_better_one_says_until_when_it_reigns(project: Path, store: Store) -> None:
    write_figures(project, "two", speedup=1.2)
    register(params(), silent)
    write_figures(project, "two", speedup=1.9)
    receipts = register(params(register=ASKING), silent)["versions"]
    assert receipts["one"]["reason"] == "stays the champion until version 2 is approved"
    assert receipts["one"]["promoted"]
    assert receipts["two"]["waits"]
    assert aliases(store) == {"champion": "1", "challenger": "2"}


def test_what_a_person_sees(asked: Path) -> None:
    shown = propose(asked)
    assert shown is not None
    assert (shown.version, shown.champion) == ("3", "2")
    assert "| | version 3 | version 2 (champion) |" in shown.comparison
    assert "| speedup (times plain decoding) | 1.800 [1.700, 1.900] | 1.500 [1.400, 1.600] |" in shown.comparison
    assert "| acceptance length (tokens a step) | 1.900 [1.800, 2.000] | 1.700 [1.600, 1.800] |" in shown.comparison
    assert "- better_than_champion: passed: better_than_champion 1.800 (needs 1.500)" in shown.comparison
    assert "Both were measured on the held-out prompts of data/prompts/test.jsonl" in shown.comparison
    assert "hunter2" not in shown.comparison


def test_other_prompts_are_said(asked: Path, store: Store) -> None:
    store.client.set_model_version_tag(NAME, "2", "specdec.conditions", "f" * 64)
    shown = propose(asked)
    assert shown is not None
    assert "the champion on others (ffffffffffff): their figures cannot be compared" in shown.comparison


def test_only_what_waits_is_proposed(asked: Path, store: Store) -> None:
    with pytest.raises(TrackingError, match=r"version 4 .* does not wait for approval: version 3 does"):
        propose(asked, "4")
    promote_by_hand(asked, "3", False, silent)
    assert tags(store, "3")["specdec.gate.approval"] == "passed: promoted by hand"
    assert tags(store, "3")["specdec.decision"].endswith("beats 1.500 of version 2; promoted by hand")
    assert propose(asked) is None
    with pytest.raises(TrackingError, match="none does"):
        propose(asked, "3")


def test_yes(asked: Path, store: Store) -> None:
    promote_by_hand(asked, "3", False, silent, Approval("Anna", "faster\non code", "2"))
    assert aliases(store) == {"champion": "3", "previous": "2"}
    told = tags(store, "3")["specdec.gate.approval"]
    assert told.startswith("passed: approved by Anna (")
    assert told.endswith("UTC): faster on code")
    decision = tags(store, "3")["specdec.decision"]
    assert decision.endswith(f"beats 1.500 of version 2; {told.removeprefix('passed: ')}"), "it waits no longer"


def test_yes_changes_nothing_where_the_champion_is_another_by_now(asked: Path, store: Store) -> None:
    promote_by_hand(asked, "4", False, silent)
    with pytest.raises(Overtaken, match=r"3 .* approved beside version 2, and the champion is version 4 by now"):
        promote_by_hand(asked, "3", False, silent, Approval("Anna", "", "2"))
    assert aliases(store)["champion"] == "4"
    promote_by_hand(asked, "4", False, silent, Approval("Bert", "", "2"))  # the same wish twice is no quarrel
    with pytest.raises(Overtaken, match=r"version 4 .* has become the champion since"):
        refuse(asked, "4", Approval("Bert", "", "2"), silent)


def test_yes_holds_to_the_checks_of_a_promotion_by_hand(asked: Path, store: Store) -> None:
    base = asked / "models/base/specdec.json"
    write_json(base, {"name": "tiny/base", "identity": {"weights": "f" * 64}})
    with pytest.raises(TrackingError, match="another base"):
        promote_by_hand(asked, "3", False, silent, Approval("Anna", "", "2"))
    assert aliases(store)["champion"] == "2"


def test_no_finds_what_a_killed_promotion_began(asked: Path, store: Store) -> None:
    """Else the next one would finish it, and make the refused version the champion."""
    store.client.set_registered_model_tag(NAME, MOVING, json.dumps({"version": "3", "before": "2"}))
    with pytest.raises(Overtaken, match=r"version 3 .* has become the champion since"):
        refuse(asked, "3", Approval("Anna", "", "2"), silent)
    assert aliases(store) == {"champion": "3", "previous": "2"}


def test_an_approval_that_was_not_written_down_is_when_it_is_said_again(asked: Path, store: Store) -> None:
    store.client.set_registered_model_alias(NAME, "champion", "3")  # killed behind the move
    promote_by_hand(asked, "3", False, silent, Approval("Anna", "", "2"))
    assert tags(store, "3")["specdec.gate.approval"].startswith("passed: approved by Anna (")


def test_no_is_a_gate_that_it_misses(asked: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_TOKEN", "sesame-open")
    refuse(asked, "3", Approval("Anna", "slow on code, sesame-open", "2"), silent)
    told = tags(store, "3")["specdec.gate.approval"]
    assert told.startswith("missed: refused by Anna (")
    assert told.endswith("UTC): slow on code, ***")
    assert tags(store, "3")["specdec.decision"].endswith(f"; {told.removeprefix('missed: ')}")
    assert waiting(asked) is None
    assert list_versions(asked)[1][1].missed == [told.removeprefix("missed: ")]
    with pytest.raises(TrackingError, match="misses a gate: refused by Anna"):
        promote_by_hand(asked, "3", False, silent, Approval("Bert", "", "2"))
    receipts = register(params(register=ASKING), silent)["versions"]
    assert receipts["one"]["reason"].startswith("not promoted: refused by Anna (")
    assert receipts["two"]["waits"], "the next best is asked about"
    assert (aliases(store), waiting(asked)) == ({"champion": "2", "challenger": "4"}, "4")
    assert tags(store, "3")["specdec.gate.approval"] == told
    register(params(), silent)
    assert aliases(store)["champion"] == "4", "a refusal counts where gates alone promote"


def test_a_change_is_told_once_whoever_made_it(project: Path, store: Store) -> None:
    assert untold_change(project) is None, "nothing is registered"
    register(params(), silent)
    first = untold_change(project)
    assert first is not None
    assert (first.model, first.version, first.previous) == (NAME, "1", None)
    mark_told(project, first)
    assert untold_change(project) is None
    promote_by_hand(project, "2", False, silent)
    second = untold_change(project)
    assert second is not None
    assert (second.version, second.previous) == ("2", "1")
    rollback(project, False, silent)
    assert untold_change(project) is None, "back again before anybody heard of it"
