"""The layers of docs/architecture.md: a lower package never imports a higher one, and mlflow has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = [
    "config",
    "data",
    "targets",
    "drafters",
    "decoding",
    "export",
    "training",
    "synthesis",
    "serving",
    "evaluation",
    "report",
    "tracking",
    "cli",
]
FILES = sorted((ROOT / "specdec").rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downwards(file: Path) -> None:
    own = file.relative_to(ROOT / "specdec").parts[0].removesuffix(".py")
    for module in imports(file):
        top, *rest = module.split(".")
        assert top not in ("dvc", "prefect", "flows", "stages"), f"{file}: {module}"
        if top == "mlflow":
            assert own == "tracking", f"{file}: {module}"
        if top == "specdec" and rest and rest[0] in ORDER and own not in ("__init__", "__main__"):  # ways in
            assert own in ORDER, f"{file} (below all packages) imports {module}"
            assert ORDER.index(rest[0]) <= ORDER.index(own), f"{file}: {module}"


def test_the_page_lists_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = {p.parent.name for p in (ROOT / "specdec").glob("*/__init__.py")}
    assert packages == set(ORDER)
    for package in packages:
        assert f"| `{package}` |" in page
