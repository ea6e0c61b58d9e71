"""specdec: make, prove, ship and keep drafters for speculative decoding."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Attached", "attach"]

if TYPE_CHECKING:
    from specdec.training.attach import Attached, attach


def __getattr__(name: str) -> Any:
    """`specdec.attach` and `specdec.Attached`, imported when they are asked for: they bring torch."""
    if name not in __all__:
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")
    from specdec.training import attach as module

    return getattr(module, name)
