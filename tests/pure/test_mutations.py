"""The mutations of scripts/mutate fit the source, and the docs. Pure: applies them to copies."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import trioreq

ROOT = Path(__file__).parents[2]
SOURCE = Path(trioreq.__file__).parent
SCRIPT = runpy.run_path(str(ROOT / "scripts/mutate"))
MUTATIONS: list[Any] = SCRIPT["read_all"]()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, to which each mutation is applied, and taken back."""
    copy = tmp_path_factory.mktemp("mutated")
    shutil.copytree(
        SOURCE, copy / "src/trioreq", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    return copy


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_applies(mutation: Any, tree: Path) -> None:
    changed = re.findall(r"^\+\+\+ b/(.*)$", mutation.patch.read_text(), re.MULTILINE)
    assert changed
    before = {path: (tree / path).read_text() for path in changed}
    assert SCRIPT["apply"](mutation, tree) == ""
    for path, text in before.items():
        mutated = (tree / path).read_text()
        assert mutated != text
        assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(text))
        (tree / path).write_text(text)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_there_are_tests_to_notice_it(mutation: Any) -> None:
    assert mutation.tests
    for test in mutation.tests:
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file()
        assert f"def {function}" in (ROOT / path).read_text()


@pytest.mark.parametrize("field", ["name", "without"])
def test_each_takes_out_something_else(field: str) -> None:
    counts = Counter(getattr(mutation, field) for mutation in MUTATIONS)
    assert [value for value, times in counts.items() if times > 1] == []


def test_the_docs_have_each_that_the_state_machine_notices() -> None:
    table = (ROOT / "docs/testing-trioreq.md").read_text().partition("| without |")[2]
    rows = re.findall(r"^\| `(.*?)` \| [\d,h]", table, re.MULTILINE)
    assert rows == [mutation.name for mutation in MUTATIONS if mutation.machine]
