"""Questions about one object and their answers: fixed frames around the documentation's own text."""

from collections.abc import Iterator

from specdec.data.pydocs.docstrings import Doc
from specdec.data.pydocs.entries import Entry, Parameter
from specdec.data.pydocs.rows import Turn, draw, pick
from specdec.data.pydocs.text import usable

MAX_LISTED = 5  # parameters or members
OPENINGS = {
    "function": ("What does the function {} do?", "What is the function {} for?", "Explain the function {}."),
    "method": ("What does the method {} do?", "What is the method {} for?", "Explain the method {}."),
    "class": ("What is the class {}?", "What is the class {} for?", "Explain the class {}."),
    "module": ("What is the module {} for?", "What is in the module {}?", "Explain the module {}."),
}


def conversations_about(e: Entry, doc: Doc) -> Iterator[tuple[str, list[Turn]]]:
    """The conversations that one object gives, as (category, turns): apart, or as one dialogue."""
    more = [(category, turn) for category, ask in FOLLOW_UPS.items() if (turn := ask(e, doc))]
    if more and draw(f"dialogue {e.module}.{e.name}", 3) == 0:
        start = draw(e.name, len(more))
        said = [(_about_it(question), answer) for _, (question, answer) in (more[start:] + more[:start])[:2]]
        yield "dialogue", [_reference(e, doc, brief=True), *said]
        return
    yield f"{e.kind} reference", [_reference(e, doc)]
    for category, (question, answer) in more:
        if category == "signatures" and draw(f"call {e.module}.{e.name}", 2):
            continue  # half of them: the reference has said it already
        yield category, [(question.format(f"the {e.kind} {_full_name(e)}"), answer)]


def _about_it(question: str) -> str:
    return question.replace("the parameters of {}", "its parameters").format("it")


def _full_name(e: Entry) -> str:
    return f"`{e.name}`" if e.kind == "module" else f"`{e.name}` of `{e.module}`"


def _reference(e: Entry, doc: Doc, brief: bool = False) -> Turn:
    question = pick(OPENINGS[e.kind], e.module + e.name).format(_full_name(e))
    answer = f"{_opening(e)}\n\n{doc.summary}"
    if e.signature and not brief:
        answer += f"\n\nIt is called as {_signature_and_parameters(e)}"
    return question, answer


def _opening(e: Entry) -> str:
    if e.kind == "module":
        home = "Python's standard library" if e.package == "python" else f"the package `{e.package}`"
        return f"`{e.name}` is a module of {home}."
    return f"`{e.name}` is a {e.kind} of the module `{e.module}`."


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
    return f"`{e.signature}`.\n\n" + "\n".join(f"- `{p.name}`: {_requirement(p)}" for p in named)


def _requirement(p: Parameter) -> str:
    if p.name.startswith("**"):
        return "any further keyword arguments."
    if p.name.startswith("*"):
        return "any further positional arguments."
    note = f", of type `{p.annotation}`" if p.annotation else ""
    return f"optional{note}, `{p.default}` by default." if p.default else f"required{note}."


def _described(e: Entry, doc: Doc) -> Turn | None:
    """The parameters as the docstring describes them."""
    lines = [f"- `{n}`{f' ({k})' if 0 < len(k) <= 40 else ''}: {text}" for n, k, text in doc.parameters if text]
    if not lines or not usable(" ".join(lines)):
        return None
    listed = "\n".join(lines[:MAX_LISTED])
    return "What do the parameters of {} mean?", f"The parameters of `{e.name}` are:\n\n{listed}"


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
    listed = "\n".join(f"- `{n}`" for n in names)
    return f"Which {what} does {{}} have?", f"Among the {what} of `{e.name}` are:\n\n{listed}"


FOLLOW_UPS = {
    "signatures": _call,
    "parameters": _described,
    "returns": _returned,
    "examples": _example,
    "members": _listing,
}  # category -> what asks for it; None where the documentation has no answer
