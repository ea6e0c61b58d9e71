"""Options and the settings they stand for: their defaults in `--help`, their names in errors."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typer

from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.errors import SpecdecError

# Parameters of `specdec train` -> settings of `training`.
TRAINING = {
    "num_epochs": "epochs",
    "lr": "learning_rate",
    "save_steps": "save_steps",
    "max_length": "max_length",
    "batch_size": "rows_per_step",
    "rows_per_pass": "rows_per_pass",
    "dtype": "dtype",
    "features": "features",
    "warm_start": "warm_start",
    "early_stopping": "early_stopping",
    "seed": "seed",
}
# Parameters that set the drafter itself; those with a method in their name are named otherwise in its settings.
OWN = (
    "loss",
    "draft_tokens",
    "unroll_steps",
    "draft_vocab_size",
    "medusa_num_heads",
    "medusa_num_layers",
    "eagle_num_layers",
)
_MESSAGE_START, _WORD_START = r"\A", r"(?<![\w./-])"
OWN_NAMES: dict[str, dict[str, str]] = {
    "medusa": {"medusa_num_heads": "num_heads", "medusa_num_layers": "num_layers"},
    "eagle": {"eagle_num_layers": "num_layers"},
    "eagle3": {},
}


def of_training(parameter: str, *names: str, help: str, nothing: str = "none", but: str = "") -> Any:
    """The option of a setting of `training`. nothing: what null means there. but: what else decides the default."""
    default = _shown(TRAINING_DEFAULTS[TRAINING[parameter]], nothing)
    return typer.Option(*names, help=help, show_default=default + but)


def of_method(parameter: str, *names: str, help: str | None = None, nothing: str = "none") -> Any:
    """The option of a drafter's own setting: with the default of each method that has it."""
    found = {}
    for method, defaults in METHOD_DEFAULTS.items():
        setting = OWN_NAMES[method].get(parameter, parameter)
        if setting in defaults:
            found[method] = _shown(defaults[setting], nothing)
    alike = len(found) == len(METHOD_DEFAULTS) and len({*found.values()}) == 1
    default = next(iter(found.values())) if alike else ", ".join(f"{m} {value}" for m, value in found.items())
    return typer.Option(*names, help=help, show_default=default)


def _shown(value: Any, nothing: str) -> str:
    return nothing if value is None else str(value)


def given(context: typer.Context, parameters: Iterable[str]) -> dict[str, Any]:
    """{parameter: value} of those that have one."""
    return {name: context.params[name] for name in parameters if context.params[name] is not None}


def spellings(context: typer.Context) -> dict[str, str]:
    """{parameter: its option, as it was typed; its first name where it was not}."""
    typed = {argument.partition("=")[0] for argument in sys.argv}
    return {
        str(p.name): next((o for o in p.opts if o in typed), p.opts[0])
        for p in context.command.params
        if p.opts[0].startswith("--")
    }


@contextlib.contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """In errors out of the block, settings are called by their options. options: {setting: option}.

    Those of `training` and of sampling wherever a `_` shows that no plain word is meant; others only where the
    message begins with them: in the middle it may speak of a file's key.
    """
    try:
        yield
    except SpecdecError as error:
        error.args = (in_options(str(error), options), *error.args[1:])
        raise


def in_options(message: str, options: Mapping[str, str]) -> str:
    """`message` with its settings called by their options."""
    for setting, option in options.items():
        anywhere = "_" in setting and setting not in OWN
        message = re.sub(rf"{_WORD_START if anywhere else _MESSAGE_START}{setting}(?![\w./-])", option, message)
    return message
