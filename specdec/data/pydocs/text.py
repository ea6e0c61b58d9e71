"""Pieces of documentation as plain text, cut at sentence ends."""

import re

# Paths of a machine, addresses of objects, mark-up that means nothing out of its page.
UNWANTED = re.compile(
    r"(?<![\w.])/(?:usr|home|root|tmp|var|etc|opt|Users|mnt|private|proc|dev|bin)\b|[A-Za-z]:\\"
    r"|0x[0-9a-f]{6,}"
    r"|<\|| at 0x|\{\{|\}\}|__doc__|TODO|FIXME|XXX"
)
ROLE = re.compile(r":[a-zA-Z:]+:`~?\.?([^`<]+?)(?:\s*<[^`>]*>)?`")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+")
MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
SENTENCE_END = re.compile(r"(?<=[a-z0-9`)'\"\]][.!?])\s+(?=[A-Z`\"'(])")
NO_PROSE = (">>>", "..", "|", "+-", "==", "--", "* ", "- ", ":", "@", "#", "```", "<", "!", "%")


def blocks(text: str) -> list[str]:
    """The parts of ``text`` between empty lines."""
    return re.split(r"\n\s*\n", text)


def is_prose(block: str) -> bool:
    """False for what is indented, and for code, tables, lists and directives."""
    return not block.startswith((" ", "\t")) and not block.lstrip().startswith(NO_PROSE)


def plain(text: str) -> str:
    """``text`` as one line of plain Markdown: roles and links of Sphinx become their names."""
    text = ROLE.sub(r"`\1`", text)
    text = MARKDOWN_LINK.sub(r"\1", LINK.sub(r"\1", text)).replace("``", "`")
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s*::?$", ":", text)


def sentences(text: str) -> list[str]:
    """``text`` cut after each sentence."""
    return SENTENCE_END.split(text)


def clipped(text: str, limit: int) -> str:
    """The leading sentences of ``text`` that fit into ``limit`` characters; '' where not even one does."""
    kept = ""
    for sentence in sentences(text):
        if len(kept) + len(sentence) + 1 > limit:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def wanted(text: str) -> bool:
    """Whether a text, of any lines, may stand in a conversation."""
    return text.isascii() and not UNWANTED.search(text)


def usable(text: str) -> bool:
    """Whether a line says something, and may stand in a conversation."""
    return len(text) >= 12 and text.isprintable() and wanted(text)
