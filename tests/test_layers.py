"""Imports point down, in no circle: what CONTRIBUTING.md says of them, held against the source."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter

import pytest

from r2q.kept import LIBRARY

LEVELS = (("cli",), ("verbs",), ("report", "evaluation", "training"), ("models",), ("quantization",))
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
FILES = {
    ".".join(file.relative_to(LIBRARY.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in LIBRARY.rglob("*.py")
    if "_root" not in file.parts
}


@cache
def imported(module: str) -> frozenset[str]:
    """All names that a module imports, also inside of functions; not what types alone are checked with."""

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from names(child)

    return frozenset(names(ast.parse(FILES[module].read_text())))


@cache
def ours(module: str) -> set[str]:
    """Those of them that are modules of r2q."""
    found = set()
    for name in imported(module):
        found |= {part for part in (name, name.rpartition(".")[0]) if part in FILES and part != module}
    return found


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_point_down() -> None:
    up = [
        f"{module} imports {other}"
        for module in FILES
        for other in ours(module)
        if package(module) in LEVEL and package(other) in LEVEL and package(module) != package(other)
        if LEVEL[package(module)] >= LEVEL[package(other)]
    ]
    assert [line for line in up if line != "r2q.verbs.completion imports r2q.cli"] == []  # which prints cli's verbs


def test_no_circle() -> None:
    TopologicalSorter({module: ours(module) for module in FILES}).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize(
    ("packages", "never"),
    [
        ({package(module) for module in FILES}, {"baselines", "mini"}),
        ({"report", "config", "failures", "intact", "kept", "measure", "records"}, {"torch", "transformers"}),
    ],
)
def test_what_is_never_imported(packages: set[str], never: set[str]) -> None:
    tops = {name.split(".")[0] for module in FILES if package(module) in packages for name in imported(module)}
    assert tops & never == set()
