"""Conversations about the language itself, from the reference that ``help()`` shows."""

import re
from collections.abc import Iterator

from specdec.data.pydocs.rows import Row, make_row
from specdec.data.pydocs.text import blocks, clipped, is_prose, plain, usable

MAX_TEXT = 420  # characters
TURNS = 3  # in one conversation, at most


def topic_rows() -> Iterator[Row]:
    """Each topic in parts of up to three paragraphs, one a turn."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship it apart
        return
    for _, text in sorted(topics.items()):
        yield from _rows_of(text)


def _rows_of(text: str) -> Iterator[Row]:
    title, *body = (block.strip("\n") for block in blocks(text))
    topic, prose = _named(title.splitlines()[0].strip()), _paragraphs(body)
    for i in range(0, len(prose), TURNS):
        part = f", part {i // TURNS + 1}" if i else ""
        first = f"What does the language reference say about {topic}{part}?", prose[i]
        yield make_row("language reference", [first, *(("Go on.", p) for p in prose[i + 1 : i + TURNS])])


def _named(title: str) -> str:
    """A title as it stands within a sentence."""
    topic = title.replace('"', "`")
    return topic[0].lower() + topic[1:] if topic.startswith(("The ", "A ", "An ")) else topic


def _paragraphs(body: list[str]) -> list[str]:
    texts = [clipped(plain(_with_code(block)), MAX_TEXT) for block in body if is_prose(block)]
    return [t for t in texts if usable(t) and len(t) > 60 and t.endswith(".")]


def _with_code(block: str) -> str:
    """``pydoc_data`` puts code into double quotes."""
    return re.sub(r'"([^"\s]{1,40})"', r"`\1`", block)
