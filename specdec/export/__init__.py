"""Drafters in the layouts of others: one module a layout, one door in and one out."""

from specdec.export.load import load_any
from specdec.export.write import write_as

__all__ = ["load_any", "write_as"]
