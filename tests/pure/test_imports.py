"""Tests and benchmarks share `harness`, and do not import each other. Pure: reads the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {"tests", *(path.stem for path in (ROOT / "tests").iterdir())}
"""The folders of the tests too: pytest finds modules from `tests`."""
FORBIDDEN = {
    "src": {"benchmarks", "harness"} | TESTS,
    "tests": {"benchmarks"},
    "benchmarks": TESTS,
    "harness": {"benchmarks"} | TESTS,
}


def modules(source: str) -> Iterator[str]:
    """The names of all modules that are imported, without those of relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def sources(folder: str) -> list[Path]:
    return [*(ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_forbidden_imports_of_a_folder_are_found(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in modules(path.read_text())
        if name.partition(".")[0] in FORBIDDEN[folder]
    ]
    assert sources(folder)
    assert not found


@pytest.mark.parametrize("folder", ["benchmarks", "harness"])
def test_nothing_is_put_on_the_path_of_imports(folder: str) -> None:
    """What `harness` and the benchmarks import is found from the root, or is installed."""
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), path
