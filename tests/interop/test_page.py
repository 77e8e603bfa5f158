"""The pages about other programs name every test of this folder, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from support.programs import NPM_PACKAGE

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE = (DOCS / "interop.md").read_text()
WORKERS = (DOCS / "existing-workers.md").read_text()
MIGRATING = (DOCS / "migrating.md").read_text()


def test_the_pages_name_each_test() -> None:
    there = [
        name
        for path in sorted(HERE.glob("test_*.py"))
        if path != Path(__file__)
        for name in re.findall(r"^async def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    named = re.findall(r"\| `(test_\w+)` \|$", PAGE + WORKERS + MIGRATING, re.MULTILINE)
    assert sorted(set(named)) == sorted(there)


def test_the_page_names_the_version_that_is_installed() -> None:
    package, _, version = NPM_PACKAGE.partition("@")
    assert f"| `{package}` of npm | {version} |" in PAGE
