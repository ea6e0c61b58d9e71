"""The rules of which the checks are made: what a key is, in a line of the form `config.json: KEY is X, wanted Y`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard


def wanted(config: dict[str, Any], values: dict[str, Any], why: str = "") -> Iterator[str]:
    for key, value in values.items():
        if not equal(config.get(key), value):
            yield f"config.json: {key} is {said(config, key)}, wanted {shown(value)}{why}"


def whole(config: dict[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if not is_whole(config.get(key)):
            yield f"config.json: {key} is {said(config, key)}, wanted a whole number from 1"


def flags(config: dict[str, Any], keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if not isinstance(config.get(key), bool):
            yield f"config.json: {key} is {said(config, key)}, wanted true or false"


def misleading(config: dict[str, Any], keys: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    for key, allowed in keys.items():
        if key in config and not any(equal(config[key], value) for value in allowed):
            yield f"config.json: {key} is {shown(config[key])}, wanted absent: vLLM would read another drafter"


def is_whole(value: Any, least: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def equal(found: Any, wanted: Any) -> bool:
    """As JSON has it: true is not 1."""
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def said(holder: Mapping[str, Any], key: str) -> str:
    return shown(holder[key]) if key in holder else "missing"
