"""Where MLflow keeps its records, and the first contact with it.

By default a SQLite file and an artifact folder in the root of the project, found from any working directory;
any server with `MLFLOW_TRACKING_URI`. `mlflow` is imported inside functions: it costs 1.7 s.
"""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from specdec.errors import SpecdecError, TrackingError, TransientError, disk_is_full

T = TypeVar("T")

# Set before mlflow is imported: no telemetry, no pickles, no advice in the middle of our output.
_DATABASE = re.compile(r"(postgresql|mysql|mssql)\b")
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
# Later calls may wait a little for a server that restarts; MLflow's own defaults wait for minutes.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a proxy may ask for an hour
}
_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

_PASSING = r"(?:error code|too many) (?:429|50[234])\b|(?:429|50[234]) (?:Server|Client) Error"
_LOCKED_SECONDS = 30.0  # how long another process may write
_NAME = r"[^\s?&;#=]{0,99}"
_SECRETS = (
    # After a colon anything up to the last `@` can be a password; without one, a user ends before the path.
    re.compile(r"://(?P<secret>[^\s/:]*:\S*|[^\s/]*)@"),
    re.compile(rf"[?&;#]{_NAME}(?:pass|pwd|token|key|secret|auth|credential|sig){_NAME}=(?P<secret>[^\s&]+)", re.I),
)


@dataclass(frozen=True)
class Location:
    """uri: MLflow's tracking URI. artifacts: where a new experiment keeps files; None: the server knows."""

    uri: str
    artifacts: Path | None

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for a server or another database."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @property
    def shown(self) -> str:
        """The URI as people may see it, without credentials."""
        return hide_credentials(self.uri)


@dataclass(frozen=True)
class Store:
    """An answering MLflow: its client and our experiment."""

    client: Any
    location: Location
    experiment_id: str


def project_root() -> Path:
    """The folder of `dvc.yaml`: DVC's own word for it, or the nearest one above the working directory."""
    if told := os.environ.get("DVC_ROOT"):
        return Path(told).resolve()
    here = Path.cwd().resolve()
    return next((p for p in (here, *here.parents) if (p / "dvc.yaml").is_file()), here)


def locate(root: Path | None = None) -> Location:
    """`MLFLOW_TRACKING_URI` if set, else `<root>/mlflow.db` with artifacts in `<root>/mlartifacts`."""
    root = root or project_root()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    location = Location(uri, None)
    if location.database is None:
        return location
    # Absolute, or the experiment's files would go wherever each process happens to stand.
    database = (root / location.database).resolve()
    return Location(f"sqlite:///{database}", database.parent / "mlartifacts")


def connect(root: Path | None = None) -> Store:
    """The store, made or migrated if it is new.

    Raises TransientError when a server does not answer, TrackingError when it refuses. Short patience here:
    a pipeline that cannot record should say so before it starts.
    """
    os.environ.update({k: v for k, v in (_QUIET | _PATIENCE).items() if k not in os.environ})
    location = locate(root)
    with _environment(_FIRST_CONTACT), speaking(location):
        if location.database is not None:
            _prepare_database(location.database)
        elif _DATABASE.match(location.uri):
            _reach(location)
        from mlflow import MlflowClient

        try:
            client = MlflowClient(tracking_uri=location.uri)
            experiment = _experiment(client, location)
        except ValueError as error:
            told = hide_credentials(str(error))
            raise TrackingError(f"MLFLOW_TRACKING_URI ({location.shown}) is no address: {told}") from None
    return Store(client, location, experiment)


def _reach(location: Location) -> None:
    """MLflow itself asks a database that is away for two minutes. Raises TransientError; what else is wrong with the
    address MLflow says better."""
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(location.uri)
    except (ImportError, ValueError, sqlalchemy.exc.ArgumentError):
        return
    try:
        engine.connect().close()
    except sqlalchemy.exc.DBAPIError as error:
        told = hide_credentials(" ".join(str(error.orig).split()))[:300]
        raise TransientError(
            f"MLflow's database {location.shown} does not answer ({told}): start it, or correct MLFLOW_TRACKING_URI"
        ) from None
    finally:
        engine.dispose()


@contextlib.contextmanager
def speaking(location: Location) -> Iterator[None]:
    """Turns what MLflow raises into our errors, in one line and without credentials."""
    try:
        yield
    except SpecdecError:
        raise
    except Exception as error:
        if _is_mlflow(error):
            raise _translated(error, location) from error
        if isinstance(error, OSError) and not disk_is_full(error):
            raise _of_files(error, location) from error
        if isinstance(error, ImportError):
            raise TrackingError(
                f"MLflow at {location.shown} needs a package that is not here ({error}): install it"
            ) from error
        raise


def if_there(store: Store, call: Callable[[], T]) -> T | None:
    """What `call` returns of MLflow; None where MLflow has no such thing."""
    from mlflow.exceptions import MlflowException

    with speaking(store.location):
        try:
            return call()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def one_try() -> contextlib.AbstractContextManager[None]:
    """Within it no call waits for a server that is away: ten seconds, and none where it refuses connections."""
    return _environment(_ONE_TRY)


def hide_credentials(text: str) -> str:
    """`scheme://user:password@host` becomes `scheme://***@host`, and `?token=x` `?token=***`, anywhere in a text.

    A password may hold `/`, `@` or `?` as they are, so where a URL can be read in two ways, more is hidden.
    """
    spans = sorted(m.span("secret") for pattern in _SECRETS for m in pattern.finditer(text))
    shown, end = "", 0
    for start, stop in spans:
        if start >= end:  # two that overlap are one
            shown += text[end:start] + "***"
        end = max(end, stop)
    return shown + text[end:]


def _experiment(client: Any, location: Location) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "specdec"
    found = client.get_experiment_by_name(name)
    if found is None:
        artifacts = location.artifacts.as_uri() if location.artifacts else None
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} in {location.shown} was deleted: restore it in MLflow, "
            "or set MLFLOW_EXPERIMENT_NAME to another name"
        )
    return str(found.experiment_id)


def _prepare_database(database: Path) -> None:
    """Makes the tables once. Processes that do so at the same time break the file, so one holds a lock,
    and the file appears under its name only when it is whole."""
    if _has_tables(database):
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if _has_tables(database):
            return
        print("preparing the MLflow database (once, about 10 seconds)", flush=True)
        aside = database.with_name(f".{database.name}.part")
        aside.unlink(missing_ok=True)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{aside}"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            last = (made.stderr.strip() or made.stdout.strip() or "no output").splitlines()[-1]
            raise TrackingError(f"the MLflow database {database} could not be made: {last}")
        aside.replace(database)


def _has_tables(database: Path) -> bool:
    """Whether the file holds MLflow's tables (of any version: MLflow itself refuses an old one).

    False for a file without any table alone: it will be replaced, and nobody's records may be. Raises TransientError
    where it is locked, TrackingError where it is something else.
    """
    if not database.is_file():
        return False
    try:
        # For writing: what a killed process left half-written is rolled back, which a reader may not do.
        address = f"{database.resolve().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(address, timeout=_LOCKED_SECONDS, uri=True)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.OperationalError as error:
        raise TransientError(f"{database} cannot be read now ({error}): run the same command again") from None
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{database} is no MLflow database ({error}): move it away") from None
    if tables and "alembic_version" not in tables:
        raise TrackingError(f"{database} is no MLflow database (its tables are others): move it away")
    return bool(tables)


def _is_mlflow(error: Exception) -> bool:
    modules = (type(error).__module__ or "").split(".")[0]
    return modules in ("mlflow", "sqlalchemy", "requests", "urllib3", "google")  # protobuf: no answer of MLflow's


def _translated(error: Exception, location: Location) -> SpecdecError:
    text = hide_credentials(" ".join(str(error).split()))
    if "out-of-date database schema" in text:
        return TrackingError(
            f"{location.shown} was made by another version of MLflow: copy the file, then run "
            f"`{sys.executable} -m mlflow db upgrade {location.shown}`"
        )
    if re.search(r"error code (401|403)\b|\b(401|403) Client Error|PERMISSION_DENIED|UNAUTHENTICATED", text):
        return TrackingError(
            f"MLflow at {location.shown} refuses access: set MLFLOW_TRACKING_USERNAME and _PASSWORD, or "
            f"MLFLOW_TRACKING_TOKEN ({text[:200]})"
        )
    if re.search(rf"HTTPConnectionPool|HTTPSConnectionPool|Connection|timed out|{_PASSING}|locked", text):
        return TransientError(
            f"MLflow at {location.shown} does not answer: start it, or correct or unset MLFLOW_TRACKING_URI"
            f" ({_cause(text)})"
        )
    return TrackingError(f"MLflow at {location.shown} refused: {text[:500]}")


def _of_files(error: OSError, location: Location) -> SpecdecError:
    """What the file system says to a store of files: ours, or an artifact folder of the server's that is here."""
    if isinstance(error, ConnectionError | TimeoutError):
        return TransientError(f"MLflow at {location.shown} does not answer: {hide_credentials(str(error))}")
    first = next(iter(error.args), None)
    if isinstance(first, list) and first:  # shutil.copytree tells of all its files at once
        return TrackingError(
            f"files of MLflow at {location.shown} cannot be copied: {hide_credentials(str(first[0][-1]))}"
        )
    where = f" ({error.filename})" if error.filename else ""
    return TrackingError(
        f"MLflow at {location.shown} keeps its files where they cannot be read or written: "
        f"{error.strerror or error}{where}: correct that place, or its permissions"
    )


def _cause(text: str) -> str:
    """The last of the reasons nested in a `requests` error."""
    reasons = re.findall(rf"Connection refused|Name or service not known|timed out|locked|{_PASSING}", text)
    return reasons[-1] if reasons else text[:200]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
