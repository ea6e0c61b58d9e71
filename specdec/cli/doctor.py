"""`specdec doctor`: what there is to work with, and what the settings here lack."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape

from specdec.config import Environment, load_params
from specdec.config.files import PARAMS
from specdec.errors import ConfigError
from specdec.serving.inventory import Engine, Inventory, missing_engine, missing_for_benchmark, take_inventory

COMPILERS = ("c++", "g++", "clang++")
PIPELINE = ("dvc", "mlflow", "prefect")
VERSIONS = ("torch", "transformers", "accelerate", "datasets", *PIPELINE)
NONE = "not installed"
Row = tuple[str, str]


@dataclass(frozen=True)
class Examined:
    """sections: by title, rows of a name and what was found. problems: what the settings lack, one line each."""

    sections: dict[str, list[Row]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def examine() -> Examined:
    """Changes nothing, and raises nothing that the settings or the machine cause."""
    inventory = take_inventory()
    sections = {
        "specdec": list(_versions()),
        "machine": list(_machine()),
        "tools": [_compiler(), _git()],
        **{engine.name: list(_engine(engine)) for engine in inventory.engines},
    }
    if not PARAMS.is_file():
        sections["settings"] = [(str(PARAMS), "not here: nothing was held against it")]
        return Examined(sections)
    problems = list(_problems(inventory))
    sections["settings"] = [(str(PARAMS), f"{len(problems)} missing" if problems else "has all that it needs here")]
    return Examined(sections, problems)


def show(found: Examined, console: Console) -> None:
    """In colours at a terminal, as plain lines elsewhere."""
    width = max(len(name) for rows in found.sections.values() for name, _ in rows)
    for title, rows in found.sections.items():
        console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
        for name, what in rows:
            console.print(f"  {escape(name.ljust(width))}  {escape(what)}", highlight=False)
    for problem in found.problems:
        console.print(f"[red]missing:[/red] {escape(problem)}", highlight=False)


def _versions() -> Iterator[Row]:
    yield "specdec", f"{_version('specdec')} in {Path(__file__).parents[1]}"
    yield "python", f"{platform.python_version()}, {sys.executable}"
    for name in VERSIONS:
        yield name, _version(name)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return NONE


def _machine() -> Iterator[Row]:
    import torch

    memory = psutil.virtual_memory()
    yield "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield "memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB of it free"
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free here"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch sees: the CPU is used"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield "GPU", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"


def _compiler() -> Row:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    path = next(filter(None, map(shutil.which, names)), None)
    return "C++ compiler", path or f"none ({', '.join(names)}): decoding cannot be compiled; all else works"


def _git() -> Row:
    if shutil.which("git") is None:
        return "git", NONE
    told = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout
    return "git", told.strip().removeprefix("git version ")


def _engine(engine: Engine) -> Iterator[Row]:
    yield "found", engine.what
    yield from engine.able.items()
    if engine.advice:
        yield "to do", engine.advice


def _problems(inventory: Inventory) -> Iterator[str]:
    try:
        params, environment = load_params(), Environment.read()
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    if params.clone_data.revision is not None and shutil.which("git") is None:
        yield f"clone_data.url is {params.clone_data.url}, a git repository, and git is not installed: install it"
    lacking_engines = missing_engine(params, environment, inventory), missing_for_benchmark(params, inventory)
    yield from filter(None, lacking_engines)
    if lacking := [name for name in PIPELINE if _version(name) == NONE]:
        yield f"stages and registration need {', '.join(lacking)}: `pip install -e '.[pipeline]'`, as `make run` does"
