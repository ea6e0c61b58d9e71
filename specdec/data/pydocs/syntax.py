"""Entries of one source file, from its syntax tree: the file is parsed and never run."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from specdec.data.pydocs.entries import Entry, Parameter

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
NOT_CALLED = ("property", "cached_property", "setter", "deleter", "overload")


def entries_of_file(path: Path, package: str, module: str) -> Iterator[Entry]:
    """The module itself, its public functions and classes, and their public methods."""
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


def _entries_of_body(body: list[ast.stmt], package: str, module: str, owner: str) -> Iterator[Entry]:
    """``owner`` is '' in a module's body, 'Class.' in that of a class."""
    for node in filter(_public, body):
        if isinstance(node, ast.ClassDef):
            yield from _entries_of_class(node, package, module)
        elif (doc := ast.get_docstring(node)) and _called(node):
            bound = bool(owner) and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            kind = "method" if owner else "function"
            yield Entry(package, module, f"{owner}{node.name}", kind, doc, _parameters(node, bound))


def _entries_of_class(node: ast.ClassDef, package: str, module: str) -> Iterator[Entry]:
    if doc := ast.get_docstring(node):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        init = next((n for n in methods if n.name == "__init__"), None)
        members = tuple(n.name for n in methods if _public(n))
        parameters = _parameters(init, bound=True) if init else None
        yield Entry(package, module, node.name, "class", doc, parameters, members)
    yield from _entries_of_body(node.body, package, module, node.name + ".")


def _public(node: ast.stmt) -> TypeGuard[Definition]:
    return isinstance(node, Definition) and not node.name.startswith("_")


def _called(node: Function) -> bool:
    """False for a property, and for a signature that only type checkers see."""
    names = (ast.unparse(d).rpartition(".")[2] for d in node.decorator_list)
    return not any(name in NOT_CALLED for name in names)


def _parameters(node: Function, bound: bool) -> tuple[Parameter, ...]:
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
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
