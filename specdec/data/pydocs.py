"""Conversations made from the documentation that is already on this machine.

    python -c "from pathlib import Path; from specdec.data import pydocs; print(pydocs.publish(Path('docs')))"

Docstrings and signatures of Python's standard library and of the installed libraries named in ``PACKAGES``
are read from their source files with ``ast`` (third-party code is never imported); built-in objects, which
have no source, are asked for ``__doc__``; the language reference comes from ``pydoc_data.topics``. Every
answer is a fixed frame around real text: "`join` is a function of the module `os.path`. ...".

The same set of installed packages always gives the same rows in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

from specdec import io
from specdec.errors import DataError

Row = dict[str, Any]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# Import name -> distribution. Read in this order; a row whose question was seen before is dropped.
PACKAGES = {
    "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "datasets": "datasets", "httpx": "httpx",
    "pydantic": "pydantic", "click": "click", "typer": "typer", "requests": "requests", "fsspec": "fsspec",
    "huggingface_hub": "huggingface_hub", "safetensors": "safetensors", "accelerate": "accelerate",
    "networkx": "networkx", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "rich": "rich",
    "jinja2": "Jinja2", "dvc": "dvc", "mlflow": "mlflow", "prefect": "prefect", "torch": "torch",
    "transformers": "transformers",
}  # fmt: skip

# Built-in modules: no Python source, so their objects are asked. All belong to the standard library.
BUILTIN_MODULES = (
    "builtins", "math", "cmath", "itertools", "time", "sys", "gc", "array", "zlib", "binascii",
    "select", "errno", "marshal", "unicodedata", "_collections", "_operator", "_random", "_struct",
    "_datetime", "_functools",
)  # fmt: skip

SKIPPED_FOLDERS = {
    "tests", "test", "testing", "_test", "idlelib", "lib2to3", "turtledemo", "ensurepip",
    "site-packages", "dist-packages", "_vendor", "vendor", "vendored", "pydoc_data", "encodings",
    "models", "protos", "migrations",
}  # fmt: skip
STDLIB_BYTES = 16_000_000  # source read at most, so that the harvest stays within seconds
PACKAGE_BYTES = 1_200_000
ROWS_PER_PACKAGE = 450
MAX_ROWS = 9_000
MAX_SUMMARY = 180  # characters
MAX_SIGNATURE = 80
MAX_MODULE = 32
MAX_NAME = 36
MAX_CODE = 260
MAX_TOPIC = 420
MAX_LISTED = 5  # parameters or members
TOPIC_TURNS = 3

SYSTEM_PROMPTS = (
    "You are a reference for Python. Answer from the documentation.",
    "You explain Python's libraries in short, plain sentences.",
    "You are a careful Python tutor.",
)
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


@dataclass(frozen=True)
class Parameter:
    """One parameter of a call: its default as source text and the type it names, '' where there is none."""

    name: str
    default: str = ""
    annotation: str = ""


@dataclass(frozen=True)
class Entry:
    """One documented object. ``kind`` is 'function', 'method', 'class' or 'module'."""

    package: str
    module: str
    name: str
    kind: str
    doc: str
    parameters: tuple[Parameter, ...] | None = None
    members: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """The call as one line, without types; '' where it is unknown or too long to be read."""
        if self.parameters is None:
            return ""
        shown = (
            self.parameters[1:] if self.parameters[:1] == (Parameter("/"),) else self.parameters
        )  # (self, /)
        parts = [f"{p.name}={p.default}" if p.default else p.name for p in shown]
        text = f"{self.name.rpartition('.')[2]}({', '.join(parts)})"
        return text if len(text) <= MAX_SIGNATURE else ""


@dataclass
class Doc:
    """A docstring in its parts."""

    summary: str = ""
    parameters: list[tuple[str, str, str]] = field(default_factory=list)  # name, type, description
    returns: str = ""
    examples: list[str] = field(default_factory=list)


# -------------------------------------------------------------------------------- reading source files


def _source_files(root: Path, limit: int) -> list[Path]:
    """Python files below ``root``, shallow ones first (the public API), up to ``limit`` bytes."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in SKIPPED_FOLDERS and n.isidentifier())
        found += [Path(folder, f) for f in files if f.endswith(".py") and f[:-3].isidentifier()]
    found.sort(key=lambda p: (len(p.relative_to(root).parts), p.relative_to(root).as_posix()))
    kept, total = [], 0
    for path in found:
        total += path.stat().st_size
        if total > limit:
            break
        kept.append(path)
    return kept


def _module_name(path: Path, root: Path, package: str) -> str:
    parts = [package] if package else []
    parts += path.relative_to(root).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def _parameters(node: Function, bound: bool) -> tuple[Parameter, ...]:
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    found = [_parameter(x, d) for x, d in zip(positional, defaults, strict=True)]
    if a.posonlyargs:
        found.insert(len(a.posonlyargs), Parameter("/"))
    found = found[1 if bound else 0 :]
    if a.vararg:
        found.append(Parameter("*" + a.vararg.arg))
    elif a.kwonlyargs:
        found.append(Parameter("*"))
    found += [_parameter(x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    if a.kwarg:
        found.append(Parameter("**" + a.kwarg.arg))
    return tuple(found)


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    text = ast.unparse(default) if default is not None else ""
    note = ast.unparse(arg.annotation).strip("'\"") if arg.annotation else ""
    return Parameter(arg.arg, text, note if len(note) <= 40 else "")


def _entries_of_file(path: Path, package: str, module: str) -> Iterator[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # templates and files for other Pythons: no documentation lost that we could read
    if doc := ast.get_docstring(tree):
        names = tuple(n.name for n in tree.body if _public(n))
        yield Entry(package, module, module, "module", doc, members=names)
    yield from _entries_of_body(tree.body, package, module, "")


def _public(node: ast.stmt) -> TypeGuard[Definition]:
    return isinstance(node, DEFINITIONS) and not node.name.startswith("_")


def _entries_of_body(body: list[ast.stmt], package: str, module: str, owner: str) -> Iterator[Entry]:
    for node in filter(_public, body):
        if isinstance(node, ast.ClassDef):
            yield from _entries_of_class(node, package, module)
        elif (doc := ast.get_docstring(node)) and not _attribute(node):
            bound = bool(owner) and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            kind = "method" if owner else "function"
            yield Entry(package, module, f"{owner}{node.name}", kind, doc, _parameters(node, bound))


def _attribute(node: Function) -> bool:
    """Whether no one calls it: a property, or a signature that only type checkers see."""
    names = [ast.unparse(d).rpartition(".")[2] for d in node.decorator_list]
    return any(name in ("property", "cached_property", "setter", "deleter", "overload") for name in names)


def _entries_of_class(node: ast.ClassDef, package: str, module: str) -> Iterator[Entry]:
    if doc := ast.get_docstring(node):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        found = _parameters(inits[0], True) if inits else None
        members = tuple(
            n.name for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
        )
        yield Entry(package, module, node.name, "class", doc, found, members)
    yield from _entries_of_body(node.body, package, module, node.name + ".")


# ------------------------------------------------------------------------------------ built-in objects


def _builtin_entries() -> Iterator[Entry]:
    for name in BUILTIN_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:  # not every build has every module
            continue
        public = name.lstrip("_")
        for key in sorted(vars(module)):
            yield from _builtin_object(vars(module)[key], public, key)


def _builtin_object(value: object, module: str, name: str) -> Iterator[Entry]:
    replaced = name.endswith("hook")  # sys.excepthook and the like are what the running program made them
    if name.startswith("_") or replaced or not (inspect.isbuiltin(value) or inspect.isclass(value)):
        return
    if doc := inspect.getdoc(value):
        kind = "class" if inspect.isclass(value) else "function"
        yield Entry("python", module, name, kind, _without_signature(doc), _text_signature(value))
    if not inspect.isclass(value):
        return
    for key in sorted(vars(value)):
        member = vars(value)[key]
        if not key.startswith("_") and inspect.isroutine(member) and (doc := inspect.getdoc(member)):
            yield Entry(
                "python", module, f"{name}.{key}", "method", _without_signature(doc), _text_signature(member)
            )


def _text_signature(value: object) -> tuple[Parameter, ...] | None:
    text = getattr(value, "__text_signature__", None)
    if not isinstance(text, str):
        return None
    parts = [p.strip() for p in re.sub(r"\$(self|module|type|cls),?", "", text.strip("()")).split(",")]
    pairs = (p.partition("=") for p in parts if p)
    return tuple(Parameter(a, c) for a, _, c in pairs)


def _without_signature(doc: str) -> str:
    """Old C docstrings open with the call itself: 'sin(x) -> float'."""
    head, _, rest = doc.partition("\n")
    return rest.strip() if re.match(r"^[\w.]+\(.*", head) and rest.strip() else doc


# --------------------------------------------------------------------------------- docstrings in parts


def _plain(text: str) -> str:
    """``text`` as one line of plain Markdown: roles and links of Sphinx become their names."""
    text = ROLE.sub(r"`\1`", text)
    text = MARKDOWN_LINK.sub(r"\1", LINK.sub(r"\1", text)).replace("``", "`")
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s*::?$", ":", text)


def _clipped(text: str, limit: int) -> str:
    """The leading sentences of ``text`` that fit into ``limit`` characters; '' where not even one does."""
    kept = ""
    for sentence in SENTENCE_END.split(text):
        if len(kept) + len(sentence) + 1 > limit:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def _usable(text: str) -> bool:
    return len(text) >= 12 and text.isascii() and text.isprintable() and not UNWANTED.search(text)


NO_PROSE = (">>>", "..", "|", "+-", "==", "--", "* ", "- ", ":", "@", "#", "```", "<", "!", "%")


def _prose(block: str) -> bool:
    first = block.lstrip()
    return not block.startswith((" ", "\t")) and not first.startswith(NO_PROSE)


NUMPY_SECTION = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}\s*$", re.M)
GOOGLE_SECTION = re.compile(
    r"^(Args|Arguments|Parameters|Returns?|Yields|Raises|Examples?|Notes?|Attributes):{1,2}[ \t]*$", re.M
)
SPHINX_PARAMETER = re.compile(r"^:param (?:([\w.\[\], ]+) )?(\*{0,2}\w+):\s*(.+?)(?=^:|^\S|\Z)", re.M | re.S)
SPHINX_RETURN = re.compile(r"^:returns?:\s*(.+?)(?=^:|\n\n|\Z)", re.M | re.S)
NUMPY_PARAMETER = re.compile(r"^(\*{0,2}\w+)(?: ?: ?(.*))?\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", re.M)
GOOGLE_PARAMETER = re.compile(
    r"^ {2,8}(\*{0,2}\w+)(?: ?\((.*?)\))?: ?(?!//)((?:.+\n?)(?:^ {6,}.*\n?)*)", re.M
)


def parse(docstring: str) -> Doc:
    """The parts of a docstring in numpy's, Google's or Sphinx's style."""
    text = inspect.cleandoc(docstring).replace("\r", "").expandtabs(4)
    doc = Doc()
    head, sections = _sections(text)
    blocks = [b for b in re.split(r"\n\s*\n", head) if b.strip()]
    prose = [_plain(b) for b in blocks if _prose(b)]
    doc.summary = _clipped(prose[0], MAX_SUMMARY) if prose and _prose(blocks[0]) else ""
    for title, body in sections:
        _read_section(doc, title.lower(), body)
    for kind, name, note in SPHINX_PARAMETER.findall(text):
        doc.parameters.append((name, kind or "", _first_sentence(note)))
    if not doc.returns and (found := SPHINX_RETURN.search(text)):
        doc.returns = _first_sentence(found[1])
    doc.examples = _doctests(text)
    return doc


def _sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    marks = list(NUMPY_SECTION.finditer(text)) or list(GOOGLE_SECTION.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    if not marks:
        return text, []
    head = text[: marks[0].start()]
    return head, [(m[1], text[m.end() : e].strip("\n")) for m, e in zip(marks, ends, strict=True)]


def _read_section(doc: Doc, title: str, body: str) -> None:
    if title in ("args", "arguments", "parameters"):
        pattern = GOOGLE_PARAMETER if body.startswith(" ") else NUMPY_PARAMETER
        for name, kind, note in pattern.findall(body):
            doc.parameters.append((name, _plain(kind), _first_sentence(note)))
    elif title in ("returns", "return", "yields"):
        lines = body.splitlines()
        numpy_style = len(lines) > 1 and not lines[0].startswith(" ") and lines[1].startswith(" ")
        doc.returns = _first_sentence("\n".join(lines[1:] if numpy_style else lines))


def _first_sentence(text: str) -> str:
    sentence = SENTENCE_END.split(_plain(text.split("\n\n")[0]))[0]
    sentence = re.sub(r"^(?:[Rr]eturns?|[Yy]ields?) (?=.)", "", sentence)
    sentence = sentence[:1].upper() + sentence[1:]
    if not _usable(sentence) or len(sentence) > 140:
        return ""
    return sentence if sentence[-1] in ".!?" else sentence.rstrip(":,;") + "."


def _doctests(text: str) -> list[str]:
    """Runs of ``>>>`` lines with what they print, as they stand in the docstring."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = inspect.cleandoc(block).splitlines()
        start = next((i for i, x in enumerate(lines) if x.startswith(">>> ")), None)
        if start is None:
            continue
        code = "\n".join(x.rstrip() for x in lines[start:] if x.strip(" >.`"))
        shows = any(x.startswith(">>> ") and "import" not in x for x in code.splitlines())
        if shows and len(code) <= MAX_CODE and code.isascii() and not UNWANTED.search(code):
            found.append(code)
    return found


# --------------------------------------------------------------------------------------- conversations

Turn = tuple[str, str]  # question, answer
OPENINGS = {
    "function": ("What does the function {} do?", "What is the function {} for?", "Explain the function {}."),
    "method": ("What does the method {} do?", "What is the method {} for?", "Explain the method {}."),
    "class": ("What is the class {}?", "What is the class {} for?", "Explain the class {}."),
    "module": ("What is the module {} for?", "What is in the module {}?", "Explain the module {}."),
}


def _draw(key: str, below: int) -> int:
    """A number from 0 to ``below - 1`` that depends on ``key`` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % below


def _pick(choices: tuple[str, ...], key: str) -> str:
    return choices[_draw(key, len(choices))]


def _full_name(e: Entry) -> str:
    return f"`{e.name}`" if e.kind == "module" else f"`{e.name}` of `{e.module}`"


def _opening(e: Entry) -> str:
    if e.kind == "module":
        home = "Python's standard library" if e.package == "python" else f"the package `{e.package}`"
        return f"`{e.name}` is a module of {home}."
    return f"`{e.name}` is a {e.kind} of the module `{e.module}`."


def _reference(e: Entry, doc: Doc, brief: bool = False) -> Turn:
    question = _pick(OPENINGS[e.kind], e.module + e.name).format(_full_name(e))
    answer = f"{_opening(e)}\n\n{doc.summary}"
    if e.signature and not brief:
        answer += f"\n\nIt is called as {_signature_and_parameters(e)}"
    return question, answer


def _call(e: Entry, doc: Doc) -> Turn | None:
    """The parameters as the signature states them."""
    if not e.signature:
        return None
    return "How is {} called?", f"It is called as {_signature_and_parameters(e)}"


def _signature_and_parameters(e: Entry) -> str:
    named = [p for p in e.parameters or () if p.name not in ("*", "/")]
    if not named:
        return f"`{e.signature}`, without parameters."
    if len(named) > MAX_LISTED:
        return f"`{e.signature}`, with {len(named)} parameters."
    lines = "\n".join(f"- `{p.name}`: {_requirement(p)}" for p in named)
    return f"`{e.signature}`.\n\n{lines}"


def _requirement(p: Parameter) -> str:
    note = f", of type `{p.annotation}`" if p.annotation else ""
    if p.name.startswith("**"):
        return "any further keyword arguments."
    if p.name.startswith("*"):
        return "any further positional arguments."
    return f"optional{note}, `{p.default}` by default." if p.default else f"required{note}."


def _described(e: Entry, doc: Doc) -> Turn | None:
    lines = [
        f"- `{n}` ({k}): {t}" if 0 < len(k) <= 40 else f"- `{n}`: {t}" for n, k, t in doc.parameters if t
    ]
    if not lines or not _usable(" ".join(lines)):
        return None
    return "What do the parameters of {} mean?", f"The parameters of `{e.name}` are:\n\n" + "\n".join(
        lines[:MAX_LISTED]
    )


def _returned(e: Entry, doc: Doc) -> Turn | None:
    return ("What does {} return?", f"`{e.name}` returns:\n\n{doc.returns}") if doc.returns else None


def _example(e: Entry, doc: Doc) -> Turn | None:
    if not doc.examples:
        return None
    return "Show an example of {}.", f"Here is an example of `{e.name}`:\n\n```python\n{doc.examples[0]}\n```"


def _listing(e: Entry, doc: Doc) -> Turn | None:
    names = [n for n in e.members if len(n) < 30][:MAX_LISTED]
    if len(names) < 2:
        return None
    what = "functions and classes" if e.kind == "module" else "methods"
    lines = "\n".join(f"- `{n}`" for n in names)
    return f"Which {what} does {{}} have?", f"Among the {what} of `{e.name}` are:\n\n{lines}"


FOLLOW_UPS = {
    "signatures": _call,
    "parameters": _described,
    "returns": _returned,
    "examples": _example,
    "members": _listing,
}


def _turns(e: Entry, doc: Doc) -> Iterator[tuple[str, list[Turn]]]:
    """The conversations that one object gives, as (category, turns): apart, or as one dialogue."""
    more = [(category, turn) for category, ask in FOLLOW_UPS.items() if (turn := ask(e, doc))]
    if more and _draw(f"dialogue {e.module}.{e.name}", 3) == 0:
        start = _draw(e.name, len(more))
        said = [(_about_it(question), answer) for _, (question, answer) in (more[start:] + more[:start])[:2]]
        yield "dialogue", [_reference(e, doc, brief=True), *said]
        return
    yield f"{e.kind} reference", [_reference(e, doc)]
    for category, (question, answer) in more:
        if category == "signatures" and _draw(f"call {e.module}.{e.name}", 2):
            continue  # half of them: the reference has said it already
        yield category, [(question.format(f"the {e.kind} {_full_name(e)}"), answer)]


def _about_it(question: str) -> str:
    return question.replace("the parameters of {}", "its parameters").format("it")


def _row(category: str, turns: list[Turn]) -> Row:
    key = turns[0][0]
    system = _pick(SYSTEM_PROMPTS, key) if _draw("system " + key, 5) == 0 else ""
    said = []
    for question, answer in turns:
        said.append({"from": "User", "value": question, "label": None})
        said.append({"from": "Assistant", "value": answer, "label": None})
    return {"system": system, "mask": "User", "dataset": category, "conversations": said}


def _rows_of(entries: Iterator[Entry]) -> Iterator[Row]:
    for e in entries:
        if len(e.module) > MAX_MODULE or len(e.name) > MAX_NAME or e.module.count(".") > 3:
            continue
        doc = parse(e.doc)
        if not (_usable(doc.summary) and doc.summary.endswith((".", "!"))):
            continue
        for category, turns in _turns(e, doc):
            texts = [text for turn in turns for text in turn]
            if all(t.isascii() and not UNWANTED.search(t) for t in texts):
                yield _row(category, turns)


# ---------------------------------------------------------------------------------- language reference


def _topic_rows() -> Iterator[Row]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions ship it apart
        return
    for name in sorted(topics):
        blocks = [b.strip("\n") for b in re.split(r"\n\s*\n", topics[name])]
        title = blocks[0].splitlines()[0].strip() if blocks else name
        topic = title.replace('"', "`")
        topic = topic[0].lower() + topic[1:] if topic.startswith(("The ", "A ", "An ")) else topic
        texts = [_clipped(_reference_text(b), MAX_TOPIC) for b in blocks[1:] if _prose(b)]
        prose = [t for t in texts if _usable(t) and len(t) > 60 and t.endswith(".")]
        for i in range(0, len(prose), TOPIC_TURNS):
            part = f", part {i // TOPIC_TURNS + 1}" if i else ""
            first = f"What does the language reference say about {topic}{part}?", prose[i]
            more = [("Go on.", text) for text in prose[i + 1 : i + TOPIC_TURNS]]
            yield _row("language reference", [first, *more])


def _reference_text(block: str) -> str:
    """Paragraphs of ``pydoc_data`` put code into double quotes."""
    return _plain(re.sub(r'"([^"\s]{1,40})"', r"`\1`", block))


# ------------------------------------------------------------------------------------------- the whole


def _package_root(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # of a top-level name: nothing is imported
    return Path(spec.origin).parent if spec and spec.origin and spec.origin.endswith("__init__.py") else None


def _package_entries(package: str, root: Path, limit: int) -> Iterator[Entry]:
    for path in _source_files(root, limit):
        module = _module_name(path, root, "" if package == "python" else package)
        if not any(p.startswith("_") for p in module.split(".")):
            yield from _entries_of_file(path, package, module)


def _sampled(rows: Iterator[Row], limit: int) -> list[Row]:
    """At most ``limit`` rows, chosen by their hash: the choice does not depend on where a row stands."""
    return sorted(rows, key=_digest)[:limit]


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _sources() -> Iterator[list[Row]]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    yield list(_topic_rows())
    yield list(_rows_of(_builtin_entries()))
    yield list(_rows_of(_package_entries("python", stdlib, STDLIB_BYTES)))
    for name in PACKAGES:
        if root := _package_root(name):
            yield _sampled(_rows_of(_package_entries(name, root, PACKAGE_BYTES)), ROWS_PER_PACKAGE)


def conversations() -> Iterator[Row]:
    """Every conversation, in an order that looks shuffled and is always the same."""
    seen: set[str] = set()
    rows = []
    for source in _sources():
        for row in source:
            keys = [row["conversations"][0]["value"], row["conversations"][1]["value"]]
            if not seen.intersection(keys):
                seen.update(keys)
                rows.append(row)
    yield from _sampled(iter(rows), MAX_ROWS)


# ------------------------------------------------------------------------------------------ publishing


def versions() -> dict[str, str]:
    """What the conversations were made from: name -> version."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        if _package_root(name):
            try:
                found[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                found[distribution] = "unknown"
    return found


def _licence(distribution: str) -> str:
    """What the distribution's own metadata says about its licence, in a few words."""
    if distribution == "python":
        return "PSF-2.0"
    try:
        facts = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return "licence: see the project"
    named = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier", []) if c.startswith("License")]
    texts = [*facts.get_all("License-Expression", []), ", ".join(named), *facts.get_all("License", [])]
    short = [t for t in texts if 0 < len(t) < 80 and "\n" not in t]
    return short[0] if short else "licence: see the project"


def fingerprint() -> str:
    """Changes whenever the conversations could: packages, versions, this module's source."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([versions(), code], sort_keys=True).encode()).hexdigest()


def _git(repo: Path, *arguments: str) -> str:
    """Run git without any configuration of the user's or the machine's."""
    if not shutil.which("git"):
        raise DataError("git is not on PATH: it is needed to publish the documentation as a repository")
    who = {"NAME": "specdec", "EMAIL": "specdec@localhost", "DATE": "2020-01-01T00:00:00+0000"}
    settings = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env = {**kept, **settings, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *arguments], cwd=repo, env=env, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"git {arguments[0]} failed in {repo}: {done.stderr.strip()}")
    return done.stdout.strip()


def _card(rows: list[Row], mark: str) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["dataset"]] = counts.get(row["dataset"], 0) + 1
    table = "\n".join(f"| {name} | {counts[name]} |" for name in sorted(counts))
    made_from = "\n".join(f"- {name} {version} ({_licence(name)})" for name, version in versions().items())
    return CARD.format(rows=len(rows), table=table, made_from=made_from, fingerprint=mark)


CARD = """---
language: en
task_categories: [text-generation]
---
# Documentation of the installed Python and its libraries, as conversations

{rows} conversations in the row schema of Daring-Anteater, for training a small base model and its drafters
offline.

## How it was made
`specdec.data.pydocs` read docstrings, signatures and doctests from source files that were already
installed, and Python's language reference from `pydoc_data.topics`. Questions and the frames of the answers
are templates; the text within them is the projects' own, cut at sentence ends.

## Categories
| category | conversations |
|---|---|
{table}

## Made from
{made_from}

## Licence
The text belongs to the projects above and stays under their licences (Python's text: the PSF License). It was
collected from an installation for use beside it; check those licences before you pass it on.

Fingerprint: {fingerprint}
"""


def publish(repo: Path) -> str:
    """Make ``repo`` a git repository with the conversations in one commit of ``main``; return its hash.

    A repository of the same fingerprint is left as it is, an older one is replaced. It is built aside and
    renamed, so that no kill leaves half of one. Raises DataError without git, and where ``repo`` holds
    something else.
    """
    mark = fingerprint()
    if repo.exists():
        card = repo / "README.md"
        recorded = card.read_text(encoding="utf-8") if card.is_file() else ""
        if f"Fingerprint: {mark}\n" in recorded:
            return _git(repo, "rev-parse", "main")
        if "Fingerprint: " not in recorded and any(repo.iterdir()):
            raise DataError(f"{repo} holds something else than published documentation: name another folder")
    with io.replacing_dir(repo) as aside:
        return _build(aside, mark)


def _build(repo: Path, mark: str) -> str:
    _git(repo, "init", "--quiet", "--template=", "--initial-branch=main")
    rows = list(conversations())
    io.write_jsonl(repo / "train.jsonl", rows)
    io.write_text(repo / "README.md", _card(rows, mark))
    _git(repo, "add", "README.md", "train.jsonl")
    _git(repo, "commit", "--quiet", "--message", "Documentation as conversations")
    return _git(repo, "rev-parse", "HEAD")
