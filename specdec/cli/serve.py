"""`specdec serve`: a drafter and its base in vLLM, checked before anything starts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import SecretStr

from specdec.config.environment import SERVE_KEY, serve_key
from specdec.config.schema import DType
from specdec.errors import ConfigError, ServerEnded
from specdec.serving.deployment import check_arguments, check_fit, check_port, find_base
from specdec.serving.launch import Launch
from specdec.serving.process import run_in_front
from specdec.serving.speculation import choose_speculation
from specdec.serving.vllm import Serving, find_vllm, vllm_launch
from specdec.targets.identity import RECORD
from specdec.tracking.checkpoints import REGISTRY
from specdec.tracking.lineage import read_json
from specdec.tracking.model import SERVING
from specdec.tracking.store import project_root

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """The command's options. what: None is the champion. arguments: further ones, of vLLM."""

    what: str | None
    base: Path | None
    concurrency: int
    draft_tokens: int | None
    use_drafter: bool
    host: str
    port: int
    dtype: str | None
    max_model_len: int | None
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Served:
    """What is to be served. base: where one came with it. measured, predicted: its serving settings, if any."""

    name: str
    drafter: Path
    base: Path | None = None
    measured: Path | None = None
    predicted: Path | None = None


def prepare(request: Request, say: Say) -> Launch:
    """All but the start. Raises what fetching and checking raise, ConfigError where vLLM is missing or too old."""
    key = serve_key()
    _check_options(request)
    served = _find(request.what, project_root(), say)
    base = find_base(served.drafter, request.base, served.base, project_root() / "models" / "base").resolve()
    check_fit(served.drafter, base)
    speculative = _speculative(request, served, base, say)
    _check_vllm()
    arguments = (*_name(base), *request.arguments)  # of two the last one counts
    serving = Serving(base, request.dtype, request.max_model_len, arguments, speculative)
    return _launch(serving, request, key)


def serve(request: Request, launch: Launch, say: Say) -> None:
    """Until vLLM ends, or we are told to. Raises ServerEnded with vLLM's exit code where it failed."""
    check_port(request.host, request.port)
    if serve_key() is None and request.host not in ("127.0.0.1", "localhost", "::1"):
        say(f"there is no key: whoever reaches {request.host} may ask; {SERVE_KEY} sets one")
    say(f"starting vLLM at http://{request.host}:{request.port}")
    if code := run_in_front(launch.command, launch.environment):
        error = ServerEnded(f"vLLM ended with exit code {code}: its last lines above say why")
        error.exit_code = code
        raise error


def _check_options(request: Request) -> None:
    dtypes = ("auto", *get_args(DType))
    if request.dtype not in (None, *dtypes):
        raise ConfigError(f"--dtype is {request.dtype!r}: choose one of {', '.join(dtypes)}")
    if request.draft_tokens and not request.use_drafter:
        raise ConfigError("--draft-tokens and --no-drafter exclude each other: leave one out")
    check_arguments(request.arguments)


def _find(what: str | None, root: Path, say: Say) -> Served:
    """A folder where there is one, else a version of the registry."""
    if what is None or what == "champion" or what.isdigit() or what.startswith(REGISTRY):
        return _fetch(what or "champion", root, say)
    folder = Path(what)
    if not folder.is_dir():
        if os.sep in what or what.startswith("."):
            raise ConfigError(f"{what} is no folder: name one with a drafter, an alias, or a version's number")
        return _fetch(what, root, say)
    folder = folder.resolve()
    if folder.parent != (root / "models" / "drafters").resolve():
        return Served(what, folder)
    measured, predicted = (root / stage / folder.name / SERVING for stage in ("engine", "reports"))
    return Served(what, folder, None, measured, predicted)


def _fetch(what: str, root: Path, say: Say) -> Served:
    from specdec.tracking.fetch_version import fetch_version, version_address

    address = version_address(what, root)
    say(f"fetching {address}")
    got = fetch_version(address, root / ".specdec" / "serving")
    return Served(got.address, got.drafter, got.base, got.measured, got.predicted)


def _speculative(request: Request, served: Served, base: Path, say: Say) -> dict[str, object] | None:
    if not request.use_drafter:
        say(f"{base} without a drafter, as --no-drafter says")
        return None
    files = served.measured, served.predicted
    chosen = choose_speculation(served.drafter, *files, request.concurrency, request.draft_tokens)
    if chosen.config is None:
        say(f"{base} WITHOUT a drafter: none is the fastest, {chosen.why} (--draft-tokens N drafts all the same)")
        return None
    method, tokens = (chosen.config[key] for key in ("method", "num_speculative_tokens"))
    say(f"{base} with the {method} drafter {served.name}, drafting {tokens} a step, {chosen.why}")
    return chosen.config


def _name(base: Path) -> list[str]:
    """What requests call it: as where it came from, else its path."""
    name = read_json(base / RECORD).get("name")
    return ["--served-model-name", str(name)] if name else []


def _check_vllm() -> None:
    found = find_vllm()  # none: `vllm_launch` says so
    if found and found.too_old:
        raise ConfigError(f"{found} is too old for these drafters: `{found.python} -m pip install --upgrade vllm`")


def _launch(serving: Serving, request: Request, key: SecretStr | None) -> Launch:
    made = vllm_launch(serving, request.port, key.get_secret_value() if key else None, request.host)
    environment = {name: value for name, value in made.environment.items() if name != SERVE_KEY}
    return Launch(made.command, environment)
