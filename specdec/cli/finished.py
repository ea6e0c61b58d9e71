"""Whether the folder that `specdec train` is to write holds the very drafter already."""

import json
from pathlib import Path
from typing import Any

from specdec.errors import ConfigError
from specdec.io import sha256_file

RECORD = "specdec.json"
_WHAT_ELSE = ": delete it, or name another folder with --output-dir"


def read_record(output: Path) -> dict[str, Any] | None:
    """What is known of the drafter in `output`; None where nothing is. Raises ConfigError for anything else there."""
    if not output.exists():
        return None
    try:
        content = json.loads((output / RECORD).read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise ConfigError(f"{output} is there already{_WHAT_ELSE}")
    return content


def check_same(output: Path, found: dict[str, Any], wanted: dict[str, Any], options: dict[str, str]) -> None:
    """Raises ConfigError, saying what differs, when the drafter in `output` is not the one that is asked for.

    found: its record. wanted: what that should hold. options: {path of a setting: its option}.
    """
    if differing := _differing(found, wanted, options):
        shown = ", ".join(differing[:4]) + (" ..." if differing[4:] else "")
        raise ConfigError(f"{output} is there already, trained with {shown}{_WHAT_ELSE}")


def warm_start_record(given: str, exact: str) -> dict[str, str | None]:
    """What the record of a drafter that went on from there holds, as far as is known without fetching it."""
    file = Path(given) / "model.safetensors"
    return {"drafter": exact, **({"sha256": sha256_file(file)} if file.is_file() else {})}


def _differing(found: dict[str, Any], wanted: dict[str, Any], options: dict[str, str]) -> list[str]:
    if found.get("method") != wanted["settings"]["method"]:
        return [f"--mode {found.get('method')}"]
    was, now = _flat(found["settings"]), _flat(wanted["settings"])
    settings = [_setting(options.get(key, key), was.get(key)) for key in now if was.get(key) != now[key]]
    others = {
        "base": "another base",
        "data": "other data, or another split of it",
        "warm_start": "other weights to go on from",
    }
    return settings + [
        told for part, told in others.items() if not _holds(found.get(part) or {}, wanted.get(part) or {})
    ]


def _setting(option: str, value: Any) -> str:
    return f"no {option}" if value is None else f"{option} {value}"


def _holds(found: Any, wanted: dict[str, Any]) -> bool:
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"training.seed": 0, ...}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat
