"""The mutations of scripts/mutate still fit the source. Pure: reads it."""

from __future__ import annotations

import ast
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import trioreq

ROOT = Path(__file__).parents[2]
SOURCE = Path(trioreq.__file__).parent
MUTATIONS: list[Any] = runpy.run_path(str(ROOT / "scripts/mutations.py"))["MUTATIONS"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_can_be_made(mutation: Any) -> None:
    text = (SOURCE / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    ast.parse(text.replace(mutation.old, mutation.new))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_there_are_tests_to_notice_it(mutation: Any) -> None:
    assert mutation.machine or mutation.tests
    assert all((ROOT / path).exists() for path in mutation.tests.split())


def test_names_are_unique() -> None:
    assert [name for name, times in Counter(m.name for m in MUTATIONS).items() if times > 1] == []


def test_the_docs_have_each_that_the_machine_notices() -> None:
    table = (ROOT / "docs/testing-trioreq.md").read_text().partition("| without |")[2]
    rows = re.findall(r"^\| (.*?) \| [\d,h]", table, re.MULTILINE)
    assert rows == [mutation.name for mutation in MUTATIONS if mutation.machine]
