"""Entries of what is written in C: there is no source to read, so the objects themselves are asked."""

import importlib
import inspect
import re
from collections.abc import Iterator

from specdec.data.pydocs.entries import Entry, Parameter

# All belong to the standard library.
BUILTIN_MODULES = (
    "builtins", "math", "cmath", "itertools", "time", "sys", "gc", "array", "zlib", "binascii",
    "select", "errno", "marshal", "unicodedata", "_collections", "_operator", "_random", "_struct",
    "_datetime", "_functools",
)  # fmt: skip


def builtin_entries() -> Iterator[Entry]:
    """The functions, classes and methods of all built-in modules."""
    for name in BUILTIN_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # not every build has every module
            continue
        for key, value in sorted(vars(module).items()):
            # sys.excepthook and the like are what the running program made them.
            if not key.startswith("_") and not key.endswith("hook"):
                yield from _entries_of(value, name.lstrip("_"), key)


def _entries_of(value: object, module: str, name: str) -> Iterator[Entry]:
    if inspect.isclass(value):
        yield from _entry(value, module, name, "class")
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_") and inspect.isroutine(member):
                yield from _entry(member, module, f"{name}.{key}", "method")
    elif inspect.isbuiltin(value):
        yield from _entry(value, module, name, "function")


def _entry(value: object, module: str, name: str, kind: str) -> Iterator[Entry]:
    if doc := inspect.getdoc(value):
        yield Entry("python", module, name, kind, _without_signature(doc), _parameters(value))


def _parameters(value: object) -> tuple[Parameter, ...] | None:
    text = getattr(value, "__text_signature__", None)
    if not isinstance(text, str):
        return None
    parts = [p.strip() for p in re.sub(r"\$(self|module|type|cls),?", "", text.strip("()")).split(",")]
    pairs = (p.partition("=") for p in parts if p)
    return tuple(Parameter(name, default) for name, _, default in pairs)


def _without_signature(doc: str) -> str:
    """Old C docstrings open with the call itself: 'sin(x) -> float'."""
    head, _, rest = doc.partition("\n")
    return rest.strip() if re.match(r"[\w.]+\(", head) and rest.strip() else doc
