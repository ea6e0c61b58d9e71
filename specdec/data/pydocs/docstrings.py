"""Docstrings in their parts, whether in numpy's, Google's or Sphinx's style."""

import inspect
import re
from dataclasses import dataclass, field

from specdec.data.pydocs.text import blocks, clipped, is_prose, plain, sentences, usable, wanted

MAX_SUMMARY = 180  # characters
MAX_SENTENCE = 140
MAX_CODE = 260

NUMPY_SECTION = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}\s*$", re.M)
GOOGLE_SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Returns?|Yields|Raises|Examples?|Notes?|Attributes):{1,2}[ \t]*$", re.M
)
SPHINX_PARAMETER = re.compile(r"^:param (?:([\w.\[\], ]+) )?(\*{0,2}\w+):\s*(.+?)(?=^:|^\S|\Z)", re.M | re.S)
SPHINX_RETURN = re.compile(r"^:returns?:\s*(.+?)(?=^:|\n\n|\Z)", re.M | re.S)
NUMPY_PARAMETER = re.compile(r"^(\*{0,2}\w+)(?: ?: ?(.*))?\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", re.M)
GOOGLE_PARAMETER = re.compile(r"^ {2,8}(\*{0,2}\w+)(?: ?\((.*?)\))?: ?(?!//)((?:.+\n?)(?:^ {6,}.*\n?)*)", re.M)


@dataclass
class Doc:
    """A docstring in its parts."""

    summary: str = ""
    parameters: list[tuple[str, str, str]] = field(default_factory=list)  # name, type, description
    returns: str = ""
    examples: list[str] = field(default_factory=list)


def parse(docstring: str) -> Doc:
    """The parts of a docstring in numpy's, Google's or Sphinx's style."""
    text = inspect.cleandoc(docstring).replace("\r", "").expandtabs(4)
    head, sections = _sections(text)
    doc = Doc(_summary(head), examples=_doctests(text))
    for title, body in sections:
        _read_section(doc, title.lower(), body)
    _read_fields(doc, text)
    return doc


def _sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the first section, and the sections as (title, body)."""
    marks = list(NUMPY_SECTION.finditer(text)) or list(GOOGLE_SECTION.finditer(text))
    starts = [*(m.start() for m in marks), len(text)]
    bodies = [text[m.end() : end].strip("\n") for m, end in zip(marks, starts[1:], strict=True)]
    return text[: starts[0]], [(m[1], body) for m, body in zip(marks, bodies, strict=True)]


def _summary(head: str) -> str:
    first = next((b for b in blocks(head) if b.strip()), "")
    return clipped(plain(first), MAX_SUMMARY) if is_prose(first) else ""


def _read_section(doc: Doc, title: str, body: str) -> None:
    """Sections of numpy's and Google's style."""
    if title in ("args", "arguments", "parameters"):
        pattern = GOOGLE_PARAMETER if body.startswith(" ") else NUMPY_PARAMETER
        for name, kind, note in pattern.findall(body):
            doc.parameters.append((name, plain(kind), _first_sentence(note)))
    elif title in ("returns", "return", "yields"):
        lines = body.splitlines()
        numpy_style = len(lines) > 1 and not lines[0].startswith(" ") and lines[1].startswith(" ")
        doc.returns = _first_sentence("\n".join(lines[1:] if numpy_style else lines))


def _read_fields(doc: Doc, text: str) -> None:
    """Fields of Sphinx's style."""
    for kind, name, note in SPHINX_PARAMETER.findall(text):
        doc.parameters.append((name, kind, _first_sentence(note)))
    if not doc.returns and (found := SPHINX_RETURN.search(text)):
        doc.returns = _first_sentence(found[1])


def _first_sentence(text: str) -> str:
    sentence = sentences(plain(text.split("\n\n")[0]))[0]
    sentence = re.sub(r"^(?:[Rr]eturns?|[Yy]ields?) (?=.)", "", sentence)
    sentence = sentence[:1].upper() + sentence[1:]
    if not usable(sentence) or len(sentence) > MAX_SENTENCE:
        return ""
    return sentence if sentence[-1] in ".!?" else sentence.rstrip(":,;") + "."


def _doctests(text: str) -> list[str]:
    """Runs of ``>>>`` lines with what they print, as they stand in the docstring."""
    codes = (_doctest(inspect.cleandoc(block).splitlines()) for block in blocks(text))
    return [code for code in codes if code and len(code) <= MAX_CODE and wanted(code)]


def _doctest(lines: list[str]) -> str:
    """The code from the first ``>>>`` on; '' where there is none, or where it only imports."""
    start = next((i for i, x in enumerate(lines) if x.startswith(">>> ")), len(lines))
    code = [x.rstrip() for x in lines[start:] if x.strip(" >.`")]
    shows = any(x.startswith(">>> ") and "import" not in x for x in code)
    return "\n".join(code) if shows else ""
