"""Drafters in the layouts of others: one module a layout, one door."""

from specdec.export.load import load_any

__all__ = ["load_any"]
