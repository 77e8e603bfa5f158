"""docs/reliability.md and the commands that make its figures name each other."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text()
HERE = {"soak", "pump", "slow", "crowd", "misbehaving", "line"}


def test_the_page_names_each_command_and_no_other() -> None:
    assert set(re.findall(r"`python -m benchmarks (\w+)`", TEXT)) == HERE
    assert set(COMMANDS) >= HERE


def test_the_page_shows_the_plots_that_are_there() -> None:
    for plot in re.findall(r"\]\((\w+\.svg)\)", TEXT):
        assert (ROOT / "docs" / plot).is_file()


def test_the_page_names_tests_that_are_there() -> None:
    for file in re.findall(r"`python -m pytest (\S+)`", TEXT):
        assert (ROOT / file).is_file()
