"""`specdec certify`: base, drafter and prompts from their files, and the certificate of the three."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specdec.cli.evaluate import DTYPES, check_writable
from specdec.data.evaluation_files import of_categories_in_turn
from specdec.data.prompt_files import read_prompt_file
from specdec.data.prompts import prompt_ids
from specdec.drafters import Drafter
from specdec.errors import ConfigError
from specdec.evaluation.certificate import Certificate, certify
from specdec.export import load_any
from specdec.io import write_json
from specdec.targets import Target


@dataclass(frozen=True)
class Request:
    """The command's options. dtype: of deployment; float32 asks for no further comparison."""

    base: Path
    drafter: Path
    prompts: Path
    max_prompts: int
    max_new_tokens: int
    tokens: int
    seed: int
    dtype: str
    output: Path | None


def certify_files(request: Request, say: Callable[[str], None]) -> Certificate:
    """Writes the JSON where one is asked for. Raises what loading and certifying raise."""
    if request.dtype not in DTYPES:
        raise ConfigError(f"--dtype is {request.dtype!r}: choose one of {', '.join(DTYPES)}")
    if request.output and request.output.exists():
        raise ConfigError(f"--output {request.output} is there already: remove it, or name another file")
    if request.output:
        check_writable(request.output)
    rows = of_categories_in_turn(read_prompt_file(request.prompts), request.max_prompts)
    target, drafter = _load(request, "float32")
    made = certify(
        target,
        drafter,
        [prompt_ids(target.tokenizer, row["messages"]) for row in rows],
        deployment=None if request.dtype == "float32" else _load(request, request.dtype),
        max_new_tokens=request.max_new_tokens,
        tokens=request.tokens,
        seed=request.seed,
        say=say,
    )
    if request.output:
        write_json(request.output, made.as_dict())
    return made


def _load(request: Request, dtype: str) -> tuple[Target, Drafter]:
    target = Target.from_pretrained(request.base, dtype=dtype)
    return target, load_any(request.drafter, target)[0]
