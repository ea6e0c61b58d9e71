"""A drafter and its base before they are served: which base it is, that the two fit, the command that serves them."""

import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

from specdec.drafters.deployable.folder import base_facts, check_folder
from specdec.errors import ConfigError, ModelError
from specdec.serving.launch import Launch
from specdec.targets import identify

_OURS = ("--host", "--port", "--model", "--dtype", "--max-model-len", "--speculative-config")
_SECRETS = {"--api-key": "SPECDEC_SERVE_KEY", "--hf-token": "HF_TOKEN"}


def find_base(drafter: Path, given: Path | None, bundled: Path | None, project: Path) -> Path:
    """The base to serve: the one that is given, the one that came with the version, or the project's own.

    Raises ModelError where there is none. Whether it is the drafter's is for `check_fit` to say.
    """
    if found := given or bundled:
        return found
    if not (project / "config.json").is_file():
        raise ModelError(f"the base of {drafter} did not come with it, and {project} is none: name it with --base")
    return project


def check_fit(drafter: Path, base: Path) -> None:
    """Raises ModelError where the drafter is not what vLLM serves for this base, or the base has no weights."""
    facts = base_facts(base)
    if facts.identity is None:
        identify(base)  # says what is missing
    if wrong := check_folder(drafter, facts):
        hint = ": name its own with --base" if any("for another base" in line for line in wrong) else ""
        raise ModelError(f"{drafter} cannot be served with {base}: {'; '.join(wrong)}{hint}")


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a further argument of vLLM that is a secret, or that has an option of ours."""
    names = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    for name in names:
        for secret, variable in _SECRETS.items():
            if secret.startswith(name) and len(name) > len("--api-"):  # argparse takes the beginning of a name
                raise ConfigError(f"{name} can be seen in the process list: set {variable} instead")
        if name in _OURS:
            raise ConfigError(f"{name} cannot stand behind `--`: `specdec serve` sets it (specdec serve --help)")


def check_port(host: str, port: int) -> None:
    """Raises ConfigError where nobody can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used ({error.strerror or error}): stop what listens there, or name "
            "another one with --port"
        ) from None


def shell_line(launch: Launch) -> str:
    """The command as one types it, with what it needs in the environment; never the key."""
    needed = {n: v for n, v in launch.environment.items() if os.environ.get(n) != v and n != "VLLM_API_KEY"}
    return shlex.join([*(f"{name}={value}" for name, value in needed.items()), *launch.command])
