"""The same function with one thing wrong."""

import inspect
import sys
from typing import Any


def mutant(function: Any, right: str, wrong: str) -> Any:
    """`function`, or a method as its class has it, whose source says `wrong` where it said `right` (once)."""
    source = inspect.getsource(function)
    assert source.count(right) == 1, f"{function.__name__} has {source.count(right)} times {right!r}"
    module = sys.modules[function.__module__]
    found: dict[str, Any] = {}
    exec(inspect.cleandoc("\n" + source).replace(right, wrong), vars(module), found)
    return found[function.__name__]
