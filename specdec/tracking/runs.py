"""One MLflow run, written to in batches."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from specdec.errors import TransientError
from specdec.tracking.store import Store, one_try, speaking
from specdec.tracking.unsent import Unsent, figures
from specdec.tracking.values import UNFINISHED, name_of, numbers, parameters, redact, shorten

_FLUSH_SECONDS = 2.0  # a page that is open shows figures at most this late
_LONGEST_PAUSE = 60.0  # between two attempts to reach a server that is away
_PARAMS_A_CALL = 100  # MLflow's limits
_METRICS_A_CALL = 900
_LONGEST_TAG = 5000


class DrafterRun:
    """The open run of one drafter.

    Figures are collected and sent at most every two seconds. A server that is away stops nothing: they are kept in a
    file (`specdec.tracking.unsent`) and sent when it is back, by another process if need be. What cannot be sent in
    the end raises TransientError.
    """

    def __init__(self, store: Store, run_id: str, unsent: Unsent | None = None) -> None:
        """unsent: where figures wait that could not be sent; what is there goes out with the next ones."""
        self.run_id = run_id
        self._store = store
        self._unsent = unsent
        self._waiting, self._tags = unsent.read() if unsent else ([], {})
        self._next = 0.0  # when to send again
        self._pause = 0.0
        self._away = False  # and that was said

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Nested numbers become `a/b` or `a/0`; a NaN or infinite one becomes a tag that says when."""
        finite, strange = numbers(values)
        self._waiting += figures(finite, step or 0)
        when = "" if step is None else f" at step {step}"
        self._tags |= {f"specdec.not_finite.{name}": number + when for name, number in strange.items()}
        if time.monotonic() >= self._next:
            self._try_to_flush()

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Settings, flat and redacted.

        One that was logged before with another value (a resumed run) stays, and the new value becomes the tag
        `specdec.changed.<name>`: MLflow allows no change of a parameter.
        """
        from mlflow.entities import Param

        new = parameters(values)
        with speaking(self._store.location):
            old = self._store.client.get_run(self.run_id).data.params
            added = [Param(name, value) for name, value in new.items() if name not in old]
            for start in range(0, len(added), _PARAMS_A_CALL):
                self._store.client.log_batch(self.run_id, params=added[start : start + _PARAMS_A_CALL])
        changed = {name: value for name, value in new.items() if old.get(name, value) != value}
        self.set_tags({f"specdec.changed.{name}": value for name, value in changed.items()})

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Short texts about the run; None is left out."""
        from mlflow.entities import RunTag

        tags = [
            RunTag(name_of(key), shorten(redact(str(value)), _LONGEST_TAG))
            for key, value in values.items()
            if value is not None
        ]
        with speaking(self._store.location):
            for start in range(0, len(tags), _PARAMS_A_CALL):
                self._store.client.log_batch(self.run_id, tags=tags[start : start + _PARAMS_A_CALL])

    def log_artifacts(self, folder: Path, artifact_path: str) -> None:
        """Copies every file of `folder` to `artifact_path` in the run, but none that a killed writer left."""
        with speaking(self._store.location):
            for file in _finished_files(folder):
                place = PurePosixPath(artifact_path) / file.parent.relative_to(folder)
                self._store.client.log_artifact(self.run_id, os.fspath(file), place.as_posix())

    def flush(self) -> None:
        """Sends what waits. Raises TransientError when MLflow does not answer; nothing is dropped then."""
        from mlflow.entities import Metric

        try:
            while self._waiting:
                with speaking(self._store.location):
                    batch = [Metric(*figure) for figure in self._waiting[:_METRICS_A_CALL]]
                    self._store.client.log_batch(self.run_id, metrics=batch)
                del self._waiting[:_METRICS_A_CALL]
            if self._tags:
                self.set_tags(self._tags)
                self._tags = {}
        except TransientError:
            if self._unsent:
                self._unsent.write(self._waiting, self._tags)
            raise
        if self._unsent:
            self._unsent.clear()
        self._next = time.monotonic() + _FLUSH_SECONDS

    def _try_to_flush(self) -> None:
        try:
            with one_try():  # whoever computes does not wait
                self.flush()
            self._pause, self._away = 0.0, False
        except TransientError as error:
            if not self._away:
                print(f"specdec: {error}; figures are kept and sent later", file=sys.stderr, flush=True)
            self._away = True
            self._pause = min(_LONGEST_PAUSE, max(_FLUSH_SECONDS, 2 * self._pause))
            self._next = time.monotonic() + self._pause


def _finished_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        unfinished = any(fnmatch(part, UNFINISHED) for part in file.relative_to(folder).parts)
        if file.is_file() and not unfinished:
            yield file
