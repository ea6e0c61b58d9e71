"""What MLflow can store: flat names, finite numbers, short texts, and no secrets."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from specdec.tracking.store import hide_credentials

UNFINISHED = ".*.part"  # the name of what a killed writer leaves (`specdec.io.replacing`): never stored
LONGEST_VALUE = 500  # characters: what every MLflow back end takes as a parameter
_LONGEST_NAME = 250
_SECRET_NAME = re.compile(r"(^|[_.-])(api_?key|secret|password|passwd|(hf|auth|access|api)_?token)$", re.I)
_SECRET_FLAG = re.compile(r"^--(api[-_]?key|(?:hf[-_]|auth[-_])?token|secret|password)(=|$)", re.I)
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """`{"a": {"b": [1, 2]}}` becomes `{"a.b.0": 1, "a.b.1": 2}`; empty mappings and lists stay."""
    return dict(_leaves("", values, separator))


def parameters(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as MLflow parameters: flat, redacted, never longer than 500 characters.

    A list of plain values is one parameter: its items say nothing alone.
    """
    flat = _leaves("", values, ".", lists=False)
    return {name_of(key): _parameter(key, value) for key, value in flat}


def numbers(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """The finite numbers among nested `values`, and the names of those that are NaN or infinite.

    Truth values count as 1 and 0; texts and None are left out.
    """
    finite: dict[str, float] = {}
    strange: dict[str, str] = {}
    for key, value in flatten(values, "/").items():
        number = _number(value)
        if number is None:
            continue
        if math.isfinite(number):
            finite[name_of(key)] = number
        else:
            strange[name_of(key)] = str(number)
    return finite, strange


def name_of(key: str) -> str:
    """`key` with what MLflow refuses in a name replaced: it must read as a path below some folder, too."""
    plain = re.sub(r"[^\w\-. /:]", "_", key)[: _LONGEST_NAME - 1]
    return "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))


def redact(text: str) -> str:
    """`text` without credentials in URLs and without the value of any secret in this environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "***")
    return hide_credentials(text)


def without_secrets(value: Any, key: str = "") -> Any:
    """Nested settings with every secret in them hidden: by its name, as a flag's value, in a URL."""
    if isinstance(value, Mapping):
        return {name: without_secrets(item, str(name)) for name, item in value.items()}
    if _SECRET_NAME.search(key) and value is not None:
        return "***"
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            value = _without_secret_flags(value)
        return [without_secrets(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def shorten(text: str, longest: int = LONGEST_VALUE) -> str:
    """`text`, cut visibly when it is longer than `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 25]}... ({len(text)} characters)"


def _leaves(key: str, value: Any, separator: str, lists: bool = True) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not key):  # nothing at all has no leaf
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple) and value and (lists or isinstance(value[0], Mapping)):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield key, value
        return
    for name, item in items:
        yield from _leaves(f"{key}{separator}{name}" if key else name, item, separator, lists)


def _parameter(key: str, value: Any) -> str:
    if _SECRET_NAME.search(key):
        return "***"
    if isinstance(value, list | tuple):
        value = _without_secret_flags([str(v) for v in value])
    return shorten(redact(str(value)))


def _without_secret_flags(words: list[str]) -> list[str]:
    """A command line's words, with `--api-key X` and `--api-key=X` hidden."""
    shown: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        flag = _SECRET_FLAG.match(word)
        if flag and flag[2]:
            word = f"{flag[0]}***"
        elif (last := _SECRET_FLAG.match(before)) and not last[2]:
            word = "***"
        shown.append(word)
    return shown


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes | Mapping | list | tuple):
        return None
    try:
        return float(value)  # also numpy's and torch's scalars
    except (TypeError, ValueError, OverflowError):
        return None
