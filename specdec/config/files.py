"""Reading `params.yaml` and laying a profile over it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from specdec.config.schema import DRAFTER_SECTIONS, METHOD_SECTIONS, Params, Section
from specdec.errors import ConfigError
from specdec.io import write_text

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")

_WHICH_METHOD = ("union_tag_invalid", "union_tag_not_found")

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: PyYAML alone reads `1e-3` as text, DVC as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A key that stands twice is refused; YAML itself would silently take the last one."""
    keys = [loader.construct_object(key) for key, _ in node.value]
    double = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if double is not None:
        line = node.start_mark.line + 1
        raise yaml.constructor.ConstructorError(None, None, f"the key {double!r} stands twice below line {line}")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def load_params(path: Path = PARAMS) -> Params:
    """The validated settings. Raises ConfigError: one line a finding, with the key's full path."""
    return validated(Params, _read(path), str(path))


def profile_names(folder: Path = PROFILES) -> list[str]:
    """The profiles that `use_profile` takes, sorted."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def use_profile(name: str, params: Path = PARAMS, folder: Path = PROFILES) -> bool:
    """Writes `profiles/<name>.yaml` over `params.yaml`: whole sections, named in the profile, are replaced.

    Says whether it did: what this profile wrote before is left alone, with whatever was edited since. Refused,
    with nothing written, when there is no such profile or the result is not valid.
    """
    if name not in profile_names(folder):
        raise ConfigError(f"no profile {name!r} in {folder}/: choose one of {', '.join(profile_names(folder))}")
    header = f"# Written by `specdec profile use {name}`; `git diff` shows what changed.\n"
    if params.is_file() and params.read_text().startswith(header):
        load_params(params)
        return False
    merged = {**_read(params), **_read(folder / f"{name}.yaml")}
    validated(Params, merged, str(folder / f"{name}.yaml"))
    write_text(params, header + yaml.safe_dump(merged, sort_keys=False, width=110))
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there: run this in the root of the repository") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of sections, and is {type(content).__name__}")
    return content


def validated(section: type[S], content: dict[str, Any], where: str, options: Mapping[str, str] | None = None) -> S:
    """A section of settings from anywhere. Raises ConfigError: one line a finding, beginning with `where`.

    options: {key's path: the option of the command line that set it}, which is named instead of both.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        findings = [_finding(e, section, where, options or {}) for e in error.errors()]
        raise ConfigError("\n".join(findings)) from None


def _finding(error: Any, section: Any, where: str, options: Mapping[str, str]) -> str:
    loc, method = _without_method(error["loc"])
    if error["type"] in _WHICH_METHOD:
        loc = (*loc, "method")
    key = ".".join(str(part) for part in loc)
    return f"{_option(key, options) or f'{where}: {key}'.removesuffix(': ')}: {_told(error, section, loc, method)}"


def _option(key: str, options: Mapping[str, str]) -> str | None:
    """The option of this key, or of one that it is a part of."""
    return next((options[name] for name in options if f"{key}.".startswith(f"{name}.")), None)


def _told(error: Any, section: Any, loc: tuple[Any, ...], method: str | None) -> str:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown key{_siblings(section, loc, method)}"
    if kind in _WHICH_METHOD:
        return f"choose one of {', '.join(METHOD_SECTIONS)}"
    if kind == "missing":
        return "missing"
    # A value that may be a secret is not repeated.
    value = "" if kind == "secret" or isinstance(error["input"], dict | list) else f" (it is {error['input']!r})"
    return f"{message[0].lower()}{message[1:]}{value}"


def _without_method(loc: tuple[Any, ...]) -> tuple[tuple[Any, ...], str | None]:
    """pydantic puts the method behind a drafter's name: (the path as the file has it, the method)."""
    if loc[:1] == ("drafters",) and len(loc) > 2 and loc[2] in METHOD_SECTIONS:
        return (*loc[:2], *loc[3:]), loc[2]
    return loc, None


def _siblings(section: Any, loc: tuple[Any, ...], method: str | None) -> str:
    """The keys that are allowed beside an unknown one, found by walking the schema."""
    model: Any = section
    for part in loc[:-1]:
        model = _submodel(model, part, method)
        if model is None:
            return ""
    names = sorted(f.alias or n for n, f in model.model_fields.items())
    return f"; allowed here: {', '.join(names)}"


def _submodel(model: Any, part: Any, method: str | None) -> Any:
    if model == "drafters":  # any name leads to the settings of the drafter's method
        return DRAFTER_SECTIONS.get(method or "")
    if part == "drafters":
        return part
    fields = {f.alias or n: f.annotation for n, f in model.model_fields.items()}
    annotation = fields.get(part)
    candidates = get_args(annotation) or (annotation,)
    return next((c for c in candidates if hasattr(c, "model_fields")), None)
