"""The door: a drafter's folder, whoever trained it -> a drafter that decodes and evaluates here."""

from pathlib import Path

from specdec.drafters import PROVENANCE, Drafter, load_drafter
from specdec.errors import ConfigError, ModelError
from specdec.export import medusa_original, modelopt, sglang, speculators, trtllm, vllm
from specdec.export.checkpoint import Layout, open_checkpoint
from specdec.targets import Target

# The first that recognises a folder reads it. vLLM's comes last: it knows its folders by their tensors alone.
LAYOUTS: tuple[Layout, ...] = (speculators.LAYOUT, medusa_original.LAYOUT, modelopt.LAYOUT, vllm.LAYOUT)
BY_OPTION = {layout.option: layout for layout in (*LAYOUTS, sglang.LAYOUT, trtllm.LAYOUT)}


def load_any(folder: Path, target: Target, layout: str | None = None) -> tuple[Drafter, str]:
    """(the drafter on the target's device, in its data type and in eval mode; the layout's name, for people).

    Our own folders, which have a `specdec.json`, must be of this very base. Those of others say at most the base's
    sizes, so that those alone can be compared. Raises ModelError, in one line, for what is no drafter, is damaged,
    does not fit the target, or holds anything that would have to be passed over.

    layout: as what the folder is to be read, by the layout's option; None: as what it looks like. Raises ModelError
    where it is another.
    """
    if layout is not None and layout not in BY_OPTION:
        raise ConfigError(f"layout is {layout!r}: choose one of {', '.join(BY_OPTION)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder with a drafter")
    try:
        if (folder / PROVENANCE).exists():
            _check_own(layout)
            return load_drafter(folder, target), "specdec"
        return _others(folder, target, layout)
    except ModelError as error:
        raise error if str(folder) in str(error) else ModelError(f"{folder}: {error}") from None


def _check_own(layout: str | None) -> None:
    if layout not in (None, vllm.LAYOUT.option):
        raise ModelError(f"it is a drafter of specdec, in vLLM's layout, and not in {BY_OPTION[layout].name}'s")


def _others(folder: Path, target: Target, asked: str | None) -> tuple[Drafter, str]:
    found = open_checkpoint(folder)
    layout = next((layout for layout in LAYOUTS if layout.recognises(found)), None)
    if asked is not None and layout is not None and layout is not BY_OPTION[asked]:
        if not BY_OPTION[asked].recognises(found):
            raise ModelError(f"{folder} is in the layout of {layout.name}, and not of {BY_OPTION[asked].name}")
        layout = BY_OPTION[asked]
    if layout is None:
        names = found.config.get("architectures") or [found.config.get("model_type") or "no architecture"]
        raise ModelError(
            f"{folder} ({names[0]}) holds no drafter of a method that is known here: Medusa, EAGLE and EAGLE-3, in "
            f"the layouts of specdec, {', '.join(layout.name for layout in LAYOUTS)}"
        )
    drafter = layout.read(found, target)
    return drafter.to(target.device, target.dtype).eval().requires_grad_(False), layout.name
