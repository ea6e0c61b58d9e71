"""The command line, `specdec`. Thin: each command calls the library and prints."""

from specdec.cli.app import main

__all__ = ["main"]
