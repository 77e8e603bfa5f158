"""docs/reliability.md and the commands that make its figures name each other."""

from __future__ import annotations

import re
import subprocess

from harness.processes import ROOT, python_module

TEXT = (ROOT / "docs/reliability.md").read_text()
HERE = {"soak", "pump", "slow", "crowd", "misbehaving", "line", "rolling"}


def test_the_page_names_each_command_and_no_other() -> None:
    assert set(re.findall(r"`python -m benchmarks (\w+)`", TEXT)) == HERE
    command = python_module("benchmarks", "--help")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^ {4}(\w+)", done.stdout, re.MULTILINE)) >= HERE


def test_the_page_shows_the_plots_that_are_there() -> None:
    for plot in re.findall(r"\]\((\w+\.svg)\)", TEXT):
        assert (ROOT / "docs" / plot).is_file()


def test_the_page_names_tests_that_are_there() -> None:
    for file in re.findall(r"`python -m pytest (\S+)`", TEXT):
        assert (ROOT / file).is_file()
