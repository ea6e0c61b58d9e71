"""`specdec clean`: what a real DVC repository and `.specdec` hold, what is shown, and when it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from specdec.cli.clean import Found, alone, look, remove_all, show
from specdec.cli.dvc_cache import cache_removal, check_idle
from specdec.errors import ConfigError, SpecdecError, TransientError
from specdec.room import Removal, need_room, shown_size, size_of
from tests.cli.process import run
from tests.tracking.example import mlflow_tables, params, settings, write_results

WORK = {
    "features": ("a" * 16, "b" * 16, "c" * 16),
    "train/one": ("d" * 16, "e" * 16),
    "train/gone": ("f" * 16,),
    "serving": ("specdec-base-1", "specdec-base-2"),
    "warm_start": ("m-1234",),
    "engine": ("gone", "one"),
}

# Its metric is git's, and DVC has a copy of it.
STAGE = """
stages:
  x:
    cmd: cat in >> ran && mkdir out && cp in out && tr a-z A-Z < in > metric
    deps: [in]
    outs: [out]
    metrics: [metric: {cache: false}]
"""


def git(root: Path, *command: str) -> None:
    named = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", *named, *command], cwd=root, check=True, capture_output=True)


def dvc(root: Path, *command: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "-q", *command], cwd=root, check=True)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that ran five times: twice committed, once on another branch, once overwritten, and as it is now."""
    root = tmp_path_factory.mktemp("cached") / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    dvc(root, "init")
    (root / "params.yaml").write_text(yaml.safe_dump(settings()))
    (root / "dvc.yaml").write_text(STAGE)
    (root / ".gitignore").write_text("/out\n/ran\n/.specdec\n")

    def run(content: str, commit: bool) -> None:
        (root / "in").write_text(content)
        dvc(root, "repro")
        if commit:
            git(root, "add", "-A")
            git(root, "commit", "-qm", content)

    run("first", True)
    run("second", True)
    git(root, "checkout", "-qb", "other")
    run("branch", True)
    git(root, "checkout", "-q", "main")
    run("nobody needs this", False)
    run("now", False)
    return root


@pytest.fixture
def project(tmp_path: Path, cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    shutil.copytree(cached, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


def fill(root: Path) -> None:
    """`.specdec` as some weeks leave it; the later a name stands, the later it was used."""
    work, now = root / ".specdec", time.time()
    for place, names in WORK.items():
        for age, name in enumerate(reversed(names)):
            folder = work / place / name
            folder.mkdir(parents=True)
            (folder / "content").write_text("x" * 1000)
            os.utime(folder, (now - age, now - age))
    (work / "train/one" / ("d" * 16) / "finished").write_text("100")
    made = root / "models/drafters/one/specdec.json"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("{}")
    os.utime(made, (now + 5, now + 5))
    present = params().synthesize.model_dump(mode="json", exclude={"engine", "max_failed_share"})
    for age, (name, said) in enumerate({"1": present, "2": present | {"seed": 77}, "3": {"seed": 78}}.items()):
        file = work / "synthesize" / f"{name * 16}.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"journal": 2, "settings": {**said, "engine": "vllm", "base": {}}}) + "\n")
        os.utime(file, (now - 9 + age, now - 9 + age))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".champion.{dead.pid}.0123abcd.part", f".champion.{os.getpid()}.0123abcd.part", "model-abcdefgh"):
        (work / name).mkdir()
    (work / "features" / "somebody's").mkdir()
    (work / "features" / ("0" * 16)).symlink_to(root)


def names(found: Found) -> set[str]:
    return {removal.what.removeprefix(".specdec/") for removal in found.removals}


def test_exactly_what_nobody_needs(project: Path) -> None:
    fill(project)
    (dead,) = (p.name for p in (project / ".specdec").glob(".champion.*") if str(os.getpid()) not in p.name)
    expected = {
        "3 objects of .dvc/cache",  # a file, its folder and the copy of its metric
        f"features/{'a' * 16}",
        f"train/one/{'d' * 16}",
        f"train/gone/{'f' * 16}",
        "engine/gone",
        f"synthesize/{'2' * 16}.jsonl",
        "warm_start/m-1234",
        dead,
        "model-abcdefgh",
    }
    found = look(project, keep=1, caches=2)
    assert names(found) == expected
    by_name = {removal.what: removal for removal in found.removals}
    assert by_name[f".specdec/features/{'a' * 16}"].bytes == 1000
    assert found.notes == []
    assert remove_all(found, print) == 0
    assert names(look(project, keep=1, caches=2)) == set()
    for stays in (f"features/{'b' * 16}", f"train/one/{'e' * 16}", f"synthesize/{'1' * 16}.jsonl", "serving"):
        assert (project / ".specdec" / stays).exists(), stays
    assert (project / ".specdec/features" / ("0" * 16)).is_symlink()
    assert (project / ".specdec/features/somebody's").is_dir()


def test_every_commit_still_has_its_results(project: Path) -> None:
    removal, _ = cache_removal(project)
    assert removal is not None
    assert removal.bytes is not None
    assert removal.bytes > len("nobody needs this")
    removal.remove()
    assert cache_removal(project) == (None, "")
    objects = [f for f in (project / ".dvc/cache/files").rglob("*") if f.is_file()]
    assert "nobody needs this" not in {f.read_text() for f in objects}
    shutil.rmtree(project / "out")
    dvc(project, "checkout")
    assert (project / "out/in").read_text() == "now"
    git(project, "stash", "-q")
    for revision, content in (("main", "second"), ("main~1", "first"), ("other", "branch")):
        git(project, "checkout", "-q", revision)
        dvc(project, "checkout")
        assert (project / "out/in").read_text() == content


def test_what_stays_is_restored_and_does_not_run_again(project: Path) -> None:
    """DVC's run cache needs the copies of metrics, which its own gc removes."""
    removal, _ = cache_removal(project)
    assert removal is not None
    removal.remove()
    (project / "ran").unlink()
    for content in ("second", "branch", "now"):
        (project / "in").write_text(content)
        dvc(project, "repro")
        assert (project / "metric").read_text() == content.upper()
    assert not (project / "ran").exists()


def test_a_cache_that_others_may_use_is_left(project: Path, tmp_path: Path) -> None:
    shutil.move(project / ".dvc/cache", tmp_path / "shared")
    dvc(project, "cache", "dir", str(tmp_path / "shared"))
    removal, note = cache_removal(project)
    assert removal is None
    assert str(tmp_path / "shared") in note


def test_a_commit_that_dvc_cannot_read_leaves_the_cache(project: Path) -> None:
    git(project, "checkout", "-q", "-b", "broken")
    (project / "dvc.yaml").write_text("stages: {x: 1}")
    git(project, "commit", "-qam", "broken")
    git(project, "checkout", "-q", "main")
    removal, note = cache_removal(project)
    assert removal is None
    assert "failed, and the cache is left as it is" in note


def test_served_versions(project: Path) -> None:
    """Without an alias they go, but not while a process names them, nor where the registry could not be asked."""
    fill(project)
    assert not {"serving/specdec-base-1", "serving/specdec-base-2"} & names(look(project, 5, 5))
    shutil.copy(mlflow_tables(), project / "mlflow.db")
    write_results(project)
    served = project / ".specdec/serving/specdec-base-2"
    with _naming(served) as process:
        assert "serving/specdec-base-1" in names(look(project, 5, 5))
        assert "serving/specdec-base-2" not in names(look(project, 5, 5))
        process.kill()


def _naming(path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(path)])


def test_refused_while_something_goes_on(project: Path) -> None:
    work = project / ".specdec"
    work.mkdir(exist_ok=True)
    with FileLock(work / "run.lock"):
        (work / "run.pid").write_text("4711\n")
        with pytest.raises(TransientError, match=r"a run is going on in this folder \(pid 4711\)"), alone(project):
            pass
    with FileLock(work / "register.lock"), pytest.raises(TransientError, match="a registration"), alone(project):
        pass
    with alone(project):
        assert (work / "run.pid").read_text() == f"{os.getpid()}\n"
    assert not (work / "run.pid").exists()


def test_refused_while_dvc_runs_a_stage_and_not_after_it_was_killed(project: Path) -> None:
    declared = "stages: {x: {cmd: touch started && sleep 60, deps: [in], outs: [out]}}"
    (project / "dvc.yaml").write_text(declared)
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=project, start_new_session=True) as running:
        for _ in range(200):
            if (project / "started").exists():
                break
            time.sleep(0.1)
        with pytest.raises(TransientError, match=r"repro` is going on in this folder \(pid \d+\)"):
            check_idle(project)
        os.killpg(running.pid, signal.SIGKILL)
    assert '/out"' in (project / ".dvc/tmp/rwlock").read_text()
    check_idle(project)


def test_a_lock_that_dvc_is_writing_is_read_again(tmp_path: Path) -> None:
    """DVC empties the file, and then fills it."""
    file = tmp_path / ".dvc/tmp/rwlock"
    file.parent.mkdir(parents=True)
    file.write_text("")
    whole = json.dumps({"write": {"/x/out": {"pid": os.getpid(), "cmd": "dvc repro"}}})
    filled = threading.Timer(0.2, file.write_text, [whole])
    filled.start()
    with pytest.raises(TransientError, match=f"`dvc repro` is going on in this folder .pid {os.getpid()}"):
        check_idle(tmp_path)
    filled.join()


def test_a_lock_that_was_left_half_written_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / ".dvc/tmp/rwlock"
    file.parent.mkdir(parents=True)
    file.write_text('{"write": {"/x/ou')
    check_idle(tmp_path)


def test_what_cannot_be_removed_is_named_and_the_rest_goes(tmp_path: Path) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/x")

    gone: list[str] = []
    removals = [Removal("theirs", "old", 5, refuse), Removal("ours", "old", None, lambda: gone.append("ours"))]
    said: list[str] = []
    assert remove_all(Found(removals), said.append) == 1
    assert gone == ["ours"]
    assert said == ["left: theirs: [Errno 13] Permission denied: '/x'", "removed: ours"]


def test_shown(tmp_path: Path) -> None:
    found = Found([Removal("a", "old", 1_500_000, print), Removal("b", "older", None, print)], {3: "champion"}, ["x"])
    console = Console(width=100)
    with console.capture() as captured:
        show(found, console)
    lines = [" ".join(line.replace("│", " ").split()) for line in captured.get().splitlines()]
    assert "a 1.5 MB old" in lines
    assert "b ? older" in lines
    assert lines[-3:] == ["version 3 stays: champion", "not looked at: x", "2 things, 1.5 MB"]


def test_on_the_command_line(project: Path) -> None:
    before = size_of(project / ".dvc/cache")
    shown = run(project, "clean")
    assert shown.returncode == 0, shown.stderr
    assert "3 objects of .dvc/cache" in shown.stdout
    assert "nothing was removed: --yes does" in shown.stdout
    assert size_of(project / ".dvc/cache") == before
    done = run(project, "clean", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "removed: 3 objects of .dvc/cache\n"
    assert size_of(project / ".dvc/cache") < before
    assert "nothing can go" in run(project, "clean").stdout
    (project / "dvc.yaml").unlink()
    refused = run(project, "clean", "--yes")
    assert refused.returncode == ConfigError("").exit_code
    assert refused.stderr.startswith("specdec: error: ")


def test_room(tmp_path: Path) -> None:
    need_room(tmp_path / "not/yet/there", 1000, "this")
    with pytest.raises(SpecdecError, match=rf"^this needs 1,000,000,000\.0 GB, and the disk of {tmp_path} has "):
        need_room(tmp_path / "not/yet/there", 10**18, "this")
    sizes = {900: "0.9 kB", 150_000: "0.1 MB", 2_000_000: "2.0 MB", 3_210_000_000: "3.2 GB"}
    assert {count: shown_size(count) for count in sizes} == sizes
