"""Every conversation that the installed documentation gives."""

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from specdec.data.pydocs.builtin_objects import builtin_entries
from specdec.data.pydocs.docstrings import parse
from specdec.data.pydocs.entries import Entry
from specdec.data.pydocs.packages import PACKAGES, package_root
from specdec.data.pydocs.questions import conversations_about
from specdec.data.pydocs.rows import Row, make_row, sampled
from specdec.data.pydocs.sources import entries_of_package
from specdec.data.pydocs.text import usable, wanted
from specdec.data.pydocs.topics import topic_rows

STDLIB_BYTES = 16_000_000  # source read at most, so that the harvest stays within seconds
PACKAGE_BYTES = 1_200_000
ROWS_PER_PACKAGE = 450
MAX_ROWS = 9_000
MAX_MODULE = 32  # characters
MAX_NAME = 36


def conversations() -> Iterator[Row]:
    """Every conversation, in an order that looks shuffled and is always the same."""
    yield from sampled(_without_repeats(_all_rows()), MAX_ROWS)


def _without_repeats(rows: Iterable[Row]) -> Iterator[Row]:
    """All but those whose first question or answer was seen before."""
    seen: set[str] = set()
    for row in rows:
        keys = [turn["value"] for turn in row["conversations"][:2]]
        if not seen.intersection(keys):
            seen.update(keys)
            yield row


def _all_rows() -> Iterator[Row]:
    yield from topic_rows()
    yield from _rows_of(builtin_entries())
    yield from _rows_of(entries_of_package("python", Path(sysconfig.get_paths()["stdlib"]), STDLIB_BYTES))
    for name in PACKAGES:
        if root := package_root(name):
            yield from sampled(_rows_of(entries_of_package(name, root, PACKAGE_BYTES)), ROWS_PER_PACKAGE)


def _rows_of(entries: Iterable[Entry]) -> Iterator[Row]:
    for e in entries:
        if len(e.module) > MAX_MODULE or len(e.name) > MAX_NAME or e.module.count(".") > 3:
            continue
        doc = parse(e.doc)
        if not (usable(doc.summary) and doc.summary.endswith((".", "!"))):
            continue
        for category, turns in conversations_about(e, doc):
            if all(wanted(text) for turn in turns for text in turn):
                yield make_row(category, turns)
