"""`specdec certify`: base, drafter and prompts from their files, and the certificate of the three."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.data.prompts import prompt_ids
from specdec.drafters import Drafter, load_drafter
from specdec.errors import ConfigError, DataError
from specdec.evaluation.certificate import Certificate, certify
from specdec.io import read_jsonl, write_json
from specdec.targets import Target

DTYPES = ("float32", "bfloat16", "float16")


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
    conversations = read_prompts(request.prompts, request.max_prompts)
    target, drafter = _load(request, "float32")
    made = certify(
        target,
        drafter,
        [prompt_ids(target.tokenizer, messages) for messages in conversations],
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
    return target, load_drafter(request.drafter, target)


def read_prompts(path: Path, count: int) -> list[list[dict[str, str]]]:
    """The first `count` conversations of a JSONL file of {"messages"} or {"turns"} rows, up to their last user turn.

    Of "turns" the first is taken: what stands between them is the model's to say. Raises DataError, with the line.
    """
    found: list[list[dict[str, str]]] = []
    try:
        for row in read_jsonl(path):
            found.append(_messages(row, f"{path}:{len(found) + 1}"))
            if len(found) == count:
                break
    except FileNotFoundError:
        raise DataError(f"{path} is not there: name a JSONL file with --prompts, or run the pipeline first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}:{len(found) + 1} is no JSONL that can be read ({error})") from None
    return found


def _messages(row: Any, where: str) -> list[dict[str, str]]:
    if isinstance(row, dict) and isinstance(row.get("turns"), list) and row["turns"]:
        messages: Any = [{"role": "user", "content": row["turns"][0]}]
    else:
        messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(_is_message(one) for one in messages):
        raise DataError(f'{where}: a row needs "messages" ({{"role", "content"}} each) or "turns" (texts)')
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise DataError(f"{where}: no message is the user's")
    return messages[: users[-1] + 1]


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
