"""One look of the watch: what is away stops nothing, and an address with a password is not told."""

from pathlib import Path

import pytest

from flows.watch import answer, one_look
from specdec.errors import TransientError
from specdec.tracking.watch import Look, Promise, Watch, WatchSettings
from tests.flows.counting import Counting, serving

PROMISE = Promise("specdec-base", "3", (0.6, 0.4))


def test_an_mlflow_that_is_away_stops_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise TransientError("MLflow is away")

    monkeypatch.setattr("flows.watch.connect", away)
    said: list[str] = []
    with serving(Counting([0.6, 0.4])) as url:
        watched = Watch(PROMISE, url, WatchSettings(), tmp_path, said.append)
        assert one_look(watched, url, PROMISE, said.append) is None
        look = one_look(watched, url, PROMISE, said.append)
    assert look is not None
    assert look.acceptance_length == pytest.approx(2.0)
    assert said[-1] == "MLflow is away: this reading is not in MLflow"


def test_a_password_in_the_address_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    artifacts: list[str] = []
    monkeypatch.setattr("flows.watch.create_markdown_artifact", lambda **given: artifacts.append(given["markdown"]))
    url = "http://me:hunter2@127.0.0.1:9"
    watched = Watch(PROMISE, url, WatchSettings(), tmp_path, said.append)
    assert one_look(watched, url, PROMISE, said.append) is None
    answer(Look(1000, 2, 1.4, 2.0, [0.3, 0.1], 9, 1.0, True), url, PROMISE, None, said.append)
    assert "looked at again later" in said[0]
    assert "nothing is trained: no file of the latest prompts was named" in said
    assert len(artifacts) == 1
    assert "hunter2" not in "".join([*said, *artifacts])
