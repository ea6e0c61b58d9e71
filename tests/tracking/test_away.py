"""An MLflow that is away, slow, no MLflow, or gone in the middle of the work: one line soon, and no figure lost."""

import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import SpecdecError, TrackingError, TransientError
from specdec.tracking import drafter_run, record_finished
from specdec.tracking.champion import champion_to_go_on_from
from specdec.tracking.checkpoints import exact_address
from specdec.tracking.fetch_version import fetch_version
from specdec.tracking.register import register
from specdec.tracking.release import list_versions, promote_by_hand, rollback
from specdec.tracking.store import Store, connect
from specdec.tracking.unsent import Unsent
from tests.tracking.example import params, write_json
from tests.tracking.mlflow_server import MlflowServer, free_port

ADDRESS = "models:/specdec-base@champion"


def silent(_line: str) -> None:
    pass


# All that asks MLflow first.
BEGINNINGS: dict[str, Callable[[Path], object]] = {
    "register": lambda root: register(params(), silent),
    "versions": list_versions,
    "promote": lambda root: promote_by_hand(root, "1", False, silent),
    "rollback": lambda root: rollback(root, False, silent),
    "serve": lambda root: fetch_version(ADDRESS, root / "into"),
    "train with warm_start": lambda root: exact_address(ADDRESS),
    "retrain": champion_to_go_on_from,
    "train": lambda root: drafter_run("one", params(), None).__enter__(),
}


@pytest.mark.parametrize("work", BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_whatever_begins_without_mlflow_says_so_soon(
    project: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], object]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(TransientError, match=r"MLflow at http://\*\*\*@127\.0\.0\.1:\d+ does not answer") as caught:
        work(project)
    assert time.monotonic() - started < 15
    assert "\n" not in str(caught.value)
    assert not list(project.glob("registry.json")) + list(project.glob("into/*"))


@pytest.mark.parametrize(
    "uri",
    [
        "htp://127.0.0.1:1",
        "ftp://127.0.0.1",
        "file:///nowhere",
        "127.0.0.1:5000",
        "http://",
        "http://[::1",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "postgresql://me:hunter2@127.0.0.1:1/x",
        "mssql+nothing://me:hunter2@127.0.0.1/x",
        "sqlite:////proc/nowhere/mlflow.db",
        "models:/x",
    ],
)
def test_an_address_that_is_none(project: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(SpecdecError, match=r"MLFLOW_TRACKING_URI|MLflow") as caught:
        connect(project)
    assert time.monotonic() - started < 15
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


class Answers(http.server.BaseHTTPRequestHandler):
    """Always the same: (status, headers, body)."""

    answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")

    def do_GET(self) -> None:
        status, headers, body = self.answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_given: object) -> None:
        pass


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield Answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        ((200, {}, b"<html>It works!</html>"), TrackingError, "JSON"),
        ((200, {}, b"[1]"), TrackingError, "JSON"),
        ((200, {}, b'{"experiment": 3}'), TrackingError, "refused"),
        ((404, {}, b"nothing here"), TrackingError, "404"),
        ((401, {}, b"who are you?"), TrackingError, "refuses access: set MLFLOW_TRACKING_USERNAME"),
        ((403, {}, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'), TrackingError, "refuses access"),
        ((503, {"Retry-After": "3600"}, b"busy"), TransientError, "does not answer"),
        ((502, {}, b"bad gateway"), TransientError, "does not answer"),
    ],
)
def test_a_server_that_is_no_mlflow(
    project: Path, answering: type[Answers], answer: Any, error: type[SpecdecError], told: str
) -> None:
    answering.answer = answer
    started = time.monotonic()
    with pytest.raises(error, match=told) as caught:
        connect(project)
    assert type(caught.value) is error
    assert time.monotonic() - started < 15
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec.tracking import store

    tries, seconds = (int(store._FIRST_CONTACT[f"MLFLOW_HTTP_REQUEST_{n}"]) for n in ("MAX_RETRIES", "TIMEOUT"))
    assert (tries + 1) * seconds <= 30
    monkeypatch.setitem(store._FIRST_CONTACT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent_one:
        silent_one.bind(("127.0.0.1", 0))
        silent_one.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_one.getsockname()[1]}")
        with pytest.raises(TransientError, match=r"does not answer.*timed out"):
            connect(project)


def test_numbers_that_are_no_answers_codes(project: Path, store: Store) -> None:
    """A version 403 that is not there is no refused access."""
    register(params(), silent)
    for number in ("401", "403", "502"):
        with pytest.raises(TrackingError, match=f"refused: .*version={number}"):
            exact_address(f"models:/specdec-base/{number}")


@pytest.mark.parametrize("blocked", ["a file", "a path in /proc"])
def test_a_store_that_cannot_keep_files(project: Path, blocked: str) -> None:
    """(Who runs as root may write everywhere: so no permission is taken away here.)"""
    if blocked == "a file":
        (project / "mlartifacts").write_text("in the way")
    else:
        (project / "mlartifacts").symlink_to("/proc/nowhere")
    with pytest.raises(
        TrackingError, match=r"cannot be read or written: .*mlartifacts.*: correct that place"
    ) as caught:
        register(params(), silent)
    assert "\n" not in str(caught.value)
    (project / "mlartifacts").unlink()
    assert register(params(), silent)["versions"]["one"]["aliases"] == ["champion"]


class Away:
    """MLflow's client without a server, while `now` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import MlflowClient

        self.now, self.asked = False, 0
        for name in ("log_batch", "log_artifact", "set_terminated", "search_runs", "get_run"):
            monkeypatch.setattr(MlflowClient, name, self._unless_away(getattr(MlflowClient, name)))

    def _unless_away(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(*given: Any, **named: Any) -> Any:
            from mlflow.exceptions import MlflowException

            if self.now:
                self.asked += 1
                raise MlflowException("HTTPConnectionPool(host='x'): Max retries exceeded: Connection refused")
            return real(*given, **named)

        return method


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.client.get_metric_history(run_id, name)]


def test_a_training_goes_on_and_is_not_slowed(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with figures that are no numbers; and the longer the server is away, the less it is asked."""
    away = Away(monkeypatch)
    clock = [1000.0]
    monkeypatch.setattr("specdec.tracking.runs.time.monotonic", lambda: clock[0])
    with drafter_run("one", params(), None) as run:
        away.now = True
        for step in range(600):
            clock[0] += 1.0
            run.log_metrics({"loss": float(step), "odd": float("nan") if step == 7 else 1.0}, step=step)
        assert 5 < away.asked < 20, "ten minutes away"
        away.now = False
    assert history(store, run.run_id, "loss") == [(step, float(step)) for step in range(600)]
    assert store.client.get_run(run.run_id).data.tags["specdec.not_finite.odd"] == "nan at step 7"
    assert capsys.readouterr().err.count("figures are kept and sent later") == 1


def test_what_one_process_could_not_send_the_next_one_does(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)

    def training() -> None:
        with drafter_run("one", params(), None) as run:
            seen.append(run.run_id)
            run.log_metrics({"loss": 3.0}, step=1)
            away.now = True
            run.log_metrics({"loss": 2.0, "odd": float("inf")}, step=2)

    seen: list[str] = []
    with pytest.raises(TransientError, match="does not answer"):
        training()
    kept = Unsent.of(project, seen[0])
    assert kept.file.exists()
    away.now = False
    with drafter_run("one", params(), seen[0]) as run:
        run.log_metrics({"loss": 1.0}, step=3)
    assert history(store, run.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert store.client.get_run(run.run_id).data.tags["specdec.not_finite.odd"] == "inf at step 2"
    assert not kept.file.exists()


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_finished_evaluation_is_not_lost(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    with drafter_run("one", params(), None) as training:
        pass
    write_json(project / "metrics/train/one.json", {"mlflow_run": training.run_id})
    away = Away(monkeypatch)
    real = type(training).log_artifacts

    def cut_off(*given: Any) -> None:
        away.now = True
        real(*given)

    with monkeypatch.context() as patch:
        if when == "before":
            away.now = True
        else:
            patch.setattr(type(training), "log_artifacts", cut_off)
        record_finished("one", params(), training.run_id, {"test/speedup": 1.3}, project / "reports/one", "report")
    assert "the figures are kept, and sent with the registration" in capsys.readouterr().err
    away.now = False
    receipt = register(params(), silent)["versions"]["one"]
    assert receipt["run_id"] == training.run_id
    assert history(store, training.run_id, "test/speedup") == [(0, 1.3)]
    kept = [f.path for f in store.client.list_artifacts(training.run_id, "report")]
    assert kept == ["report/decision.md", "report/report.html"]
    assert not list(project.glob(".specdec/unsent/*"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"figures": 3}', '{"figures": [[1]]}', '{"tags": []}'])
def test_a_damaged_file_of_kept_figures_holds_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert Unsent(tmp_path / "x.json").read() == ([], {})


@pytest.mark.soak
def test_a_real_server_killed_in_the_middle(
    project: Path, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back before the end; it stays away, and a later process sends what was kept."""
    server = MlflowServer(tmp_path / "server", tables)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setattr("specdec.tracking.runs._FLUSH_SECONDS", 0.0)
    seen: list[str] = []

    def training(first: int, comes_back: bool) -> None:
        with drafter_run("one", params(), seen[0] if seen else None) as run:
            seen[:] = [run.run_id]
            run.log_metrics({"loss": 1.0}, step=first)
            server.end(signal.SIGKILL)
            started = time.monotonic()
            run.log_metrics({"loss": 2.0}, step=first + 1)
            assert time.monotonic() - started < 5, "a refused connection is not waited for"
            if comes_back:
                server.start()
            run.log_metrics({"loss": 3.0}, step=first + 2)

    try:
        server.start()
        training(1, comes_back=True)
        with pytest.raises(TransientError, match="does not answer"):
            training(4, comes_back=False)
        assert json.loads(Unsent.of(project, seen[0]).file.read_text())["figures"]
        write_json(project / "metrics/train/one.json", {"mlflow_run": seen[0]})
        record_finished("one", params(), seen[0], {"test/speedup": 1.3}, project / "reports/one", "report")
        server.start()
        assert register(params(), silent)["versions"]["one"]["run_id"] == seen[0]
        store = connect(project)
        expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 1.0), (5, 2.0), (6, 3.0)]
        assert history(store, seen[0], "loss") == expected
        assert history(store, seen[0], "test/speedup") == [(0, 1.3)]
        assert store.client.get_run(seen[0]).info.status == "FINISHED"
    finally:
        server.end()
