"""Two machines and a folder as DVC's remote: what one has run, the other brings and does not run."""

import contextlib
import shutil
from pathlib import Path

import pytest
import yaml

from flows.graph import read_plan
from flows.process import Commands
from flows.remote import remote_name
from flows.stage_task import NotHere, StageFailed, bring_or_run, travel
from specdec.errors import EX_TEMPFAIL, ConfigError
from tests.tracking.example import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC's, in this process


def stage(name: str, *needs: str, **outputs: object) -> dict[str, object]:
    """Writes down that it ran, a folder, and a metric that git would hold."""
    inputs = " ".join(needs)
    cmd = f"echo {name} >> ran && mkdir {name} && cat {inputs} > {name}/a && tr 1 m < {needs[0]} > {name}.json"
    return {
        "cmd": cmd,
        "deps": list(needs),
        "outs": [name],
        "metrics": [{f"{name}.json": {"cache": False}}],
        **outputs,
    }


RECEIPT = {
    "cmd": "echo receipt >> ran && cp two/a receipt",
    "deps": ["two/a"],
    "outs": [{"receipt": {"cache": False}}],
}
STAGES = {"one": stage("one", "input"), "two": stage("two", "one/a", "one.json"), "receipt": RECEIPT}


class Machine:
    """A clone of the project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[str] = []

    def bring(self, *only: str, remote: str | None = "shared") -> list[str]:
        """What the flow does: each stage in its turn. Returns those that ran."""
        with contextlib.chdir(self.root):  # DVC names stages as seen from the working directory
            plan = read_plan(self.root)
            plan = plan.only(list(only)) if only else plan
            given = (self.root, Commands(), remote, self.log.append)
            return [s.name for s in plan.stages if bring_or_run(s, *given)]

    @property
    def ran(self) -> list[str]:
        file = self.root / "ran"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, Machine]:
    """Both see the same folder as the remote `shared`."""
    monkeypatch.setenv("SPECDEC_DVC_REMOTE", "shared")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("first", "second"):
        root = tmp_path / name
        (root / ".dvc").mkdir(parents=True)
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
        (root / "input").write_text("1\n")
        (root / ".dvc/config").write_text(
            "[core]\n    no_scm = true\n['remote \"shared\"']\n    url = ../../shared\n"
        )
    return Machine(tmp_path / "first"), Machine(tmp_path / "second")


def test_what_one_machine_has_run_the_other_brings_and_does_not_run(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    assert first.bring("one") == ["one"]
    assert second.bring("two") == ["two"]
    assert (first.ran, second.ran) == (["one"], ["two"])
    assert (second.root / "one.json").read_text() == "m\n"  # a metric that git holds came along
    assert "one: brought from the remote" in second.log


@pytest.mark.soak
def test_what_the_cache_here_holds_is_not_said_to_come_from_the_remote(machines: tuple[Machine, Machine]) -> None:
    machine, _ = machines
    restored, brought = "one: restored from the cache", "one: brought from the remote"
    machine.bring("one")
    shutil.rmtree(machine.root / "one")
    shutil.rmtree(machine.root.parent / "shared")
    assert machine.bring("one") == []
    assert (machine.log.count(restored), machine.log.count(brought)) == (1, 0)
    (machine.root / "dvc.lock").unlink()  # the run is known by the remote's entry, which was sent again
    assert machine.bring("one") == []
    assert (machine.log.count(restored), machine.log.count(brought)) == (2, 0)
    (machine.root / "dvc.lock").unlink()
    (metric,) = (f for f in (machine.root / ".dvc/cache/files").rglob("*") if f.is_file() and f.read_text() == "m\n")
    metric.unlink()
    assert machine.bring("one") == []
    assert (machine.log.count(restored), machine.log.count(brought)) == (2, 1)
    assert machine.ran == ["one"]


@pytest.mark.soak
def test_what_only_git_holds_is_never_brought(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    first.bring()
    assert second.bring() == ["receipt"]  # its registry may lack what the receipt tells
    assert (second.ran, first.bring(), second.bring()) == (["receipt"], [], [])


@pytest.mark.soak
def test_what_was_not_run_where_it_belongs_is_not_run_elsewhere(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    with pytest.raises(
        NotHere, match="one is not asked for here, and cannot be brought: the remote shared has no run"
    ):
        second.bring("two")
    with pytest.raises(NotHere, match="SPECDEC_DVC_REMOTE names no remote"):
        second.bring("two", remote=None)
    assert second.ran == []
    first.bring("one")
    (second.root / "input").write_text("2\n")  # another input: the run of the first is none of it
    with pytest.raises(NotHere):
        second.bring("two")
    with pytest.raises(ConfigError, match="no stage tow: it has one, receipt, two"):
        second.bring("tow")


@pytest.mark.soak
def test_a_run_whose_outputs_are_not_all_there_is_not_run_again(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    first.bring("one")
    shared = first.root.parent / "shared"
    shutil.rmtree(shared / "files")
    with pytest.raises(StageFailed, match="another machine has run one, and not all of its outputs came") as failed:
        second.bring("one")
    assert failed.value.exit_code == EX_TEMPFAIL
    assert second.ran == []
    shutil.rmtree(shared)
    assert first.bring("one") == []  # up to date, and sent again
    assert second.bring("one") == []


@pytest.mark.soak
@pytest.mark.parametrize("when", ["while it runs", "before it is sent"])
def test_outputs_of_another_input_are_not_sent(machines: tuple[Machine, Machine], when: str) -> None:
    """DVC looks at the inputs when a run has ended: what came of the old one would pass for the new one's."""
    first, second = machines
    if when == "while it runs":
        changing = STAGES | {
            "one": stage("one", "input") | {"cmd": f"{stage('one', 'input')['cmd']} && echo 2 > input"}
        }
        (first.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": changing}))
        with pytest.raises(StageFailed, match="an input of one changed while it ran, or since: its outputs are not"):
            first.bring("one")
    else:
        first.bring("one", remote=None)
        (first.root / "input").write_text("2\n")
        with contextlib.chdir(first.root), pytest.raises(StageFailed, match="an input of one changed while it ran"):
            travel("send", "one", first.root, Commands(), first.log.append)
    (second.root / "input").write_text("2\n")
    with pytest.raises(NotHere):
        second.bring("two")


@pytest.mark.soak
def test_what_was_skipped_is_not_sent(machines: tuple[Machine, Machine]) -> None:
    """Another machine may have what was missing here."""
    first, second = machines
    skipping = {"cmd": 'mkdir one && echo a > one/a && echo \'{"skipped": "none"}\' > one.json'}
    for machine in machines:
        changed = {"stages": STAGES | {"one": stage("one", "input") | skipping}}
        (machine.root / "dvc.yaml").write_text(yaml.safe_dump(changed))
    assert first.bring("one") == second.bring("one") == ["one"]
    assert "one was skipped here: that is not sent" in first.log


@pytest.mark.soak
def test_what_is_half_sent_is_not_taken(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    first.bring("one")
    (entry,) = (first.root.parent / "shared").rglob("runs/*/*/*")
    (entry.parent / ".half.tmp").write_text("")
    assert second.bring("one") == []
    entry.rename(entry.parent / ".other.tmp")
    shutil.rmtree(second.root / ".dvc/cache")
    shutil.rmtree(second.root / "one")
    (second.root / "dvc.lock").unlink()
    assert second.bring("one") == ["one"]


@pytest.mark.soak
def test_files_come_for_a_lock_that_came_with_git(machines: tuple[Machine, Machine]) -> None:
    first, second = machines
    first.bring("one")
    for name in ("dvc.lock", "one.json"):
        shutil.copy(first.root / name, second.root)
    shutil.rmtree(first.root.parent / "shared/runs")
    assert second.bring("one") == []
    assert (second.root / "one/a").read_text() == "1\n"


@pytest.mark.soak
def test_a_remote_that_is_unknown_or_away_is_said(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = machines
    assert remote_name(first.root) == "shared"
    (first.root.parent / "shared").write_text("no folder")
    with pytest.raises(StageFailed, match="the DVC remote shared fails: ") as failed:
        first.bring("one")
    assert failed.value.exit_code == EX_TEMPFAIL
    monkeypatch.setenv("SPECDEC_DVC_REMOTE", "elsewhere")
    with pytest.raises(ConfigError, match=r"'elsewhere', and DVC has no such remote \(it has: shared\)"):
        remote_name(first.root)
    monkeypatch.delenv("SPECDEC_DVC_REMOTE")
    assert remote_name(first.root) is None
