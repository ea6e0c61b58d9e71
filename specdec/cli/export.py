"""`specdec export`: a drafter's folder, ours or another's, in the layout that an engine loads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.drafters import PROVENANCE, Drafter
from specdec.errors import ConfigError
from specdec.export import load_any, sglang, trtllm, write_as
from specdec.export.checkpoint import stored_dtype
from specdec.export.content import METHODS
from specdec.export.load import BY_OPTION
from specdec.export.write import WRITABLE
from specdec.targets import Target

OURS = "vllm"
_START = {
    sglang.LAYOUT.option: "python -m sglang.launch_server --config {output}/" + sglang.LAUNCH,
    trtllm.LAYOUT.option: "trtllm-serve {base} --config {output}/" + trtllm.LAUNCH,
    "speculators": "vllm serve {output}",
}


@dataclass(frozen=True)
class Request:
    """The command's options. to: a layout to write. source: the layout of `drafter`; None: seen from the folder."""

    drafter: Path
    base: Path
    to: str
    output: Path
    source: str | None


def export_drafter(request: Request) -> str:
    """Writes the folder, and says in a line or two what it is. Raises ConfigError and ModelError, writing nothing."""
    _check(request)
    target = Target.from_pretrained(request.base, dtype=stored_dtype(request.drafter), device="cpu")
    drafter, name = load_any(request.drafter, target, request.source)
    if request.to == OURS:
        drafter.save_pretrained(request.output, _record(request.drafter, name))
    else:
        write_as(request.to, drafter, request.output, str(request.base))
    return _told(request, drafter, name)


def _check(request: Request) -> None:
    """What can be said before a model is loaded."""
    for option, value, allowed in (
        ("--to", request.to, (OURS, *WRITABLE)),
        ("--from", request.source or OURS, tuple(BY_OPTION)),
    ):
        if value not in allowed:
            raise ConfigError(f"{option} is {value!r}: choose one of {', '.join(allowed)}")
    if request.output.exists():
        raise ConfigError(f"--output {request.output} is there already: remove it, or name another folder")


def _record(folder: Path, name: str) -> dict[str, Any]:
    """What `specdec.json` goes on to say of a drafter of ours; where another's comes from."""
    if (folder / PROVENANCE).exists():
        record: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return record
    return {"source": {"layout": name}}


def _told(request: Request, drafter: Drafter, name: str) -> str:
    to = "vLLM" if request.to == OURS else BY_OPTION[request.to].name
    start = _START.get(request.to, "").format(output=request.output, base=request.base)
    line = f"{request.output}: {METHODS[drafter.method]}, from the layout of {name} to that of {to}"
    return f"{line}\nstart: {start}" if start else line
