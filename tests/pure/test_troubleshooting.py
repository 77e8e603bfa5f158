"""docs/troubleshooting.md and the source have the same texts: neither changes without the other.

On the page and here ``…`` stands for what varies in a text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trioreq
from trioreq._gateway.gateway import NO_WORKER
from trioreq._protocol.endings import ENDINGS
from trioreq._protocol.handshakes import Failure

SOURCE = Path(trioreq.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
GAP = "…"
TREES = [ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))]
LEVELS = {"warning": "Warnings", "error": "Errors", "exception": "Errors"}
LEAST = 8  # letters of a text that says something


def text_of(node: ast.expr) -> str:
    """A string of the source, with a gap for each value in it; empty if it is not a string."""
    match node:
        case ast.Constant(str(value)):
            text = re.sub(r"%[\d.]*[a-z]|\{\w+\}", GAP, value)
        case ast.JoinedStr(values):
            text = "".join(text_of(value) or GAP for value in values)
        case _:
            return ""
    return text.partition("\n")[0]


def calls(tree: ast.Module) -> Iterator[tuple[str, str, ast.expr]]:
    """Calls with at least one argument: the object, the function, and that argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            match node.func:
                case ast.Attribute(ast.Name(owner) | ast.Attribute(_, owner), name):
                    yield owner, name, node.args[0]
                case ast.Name(name):
                    yield "", name, node.args[0]


NODES = [node for tree in TREES for node in ast.walk(tree)]
STRINGS = {text_of(node) for node in NODES if isinstance(node, ast.expr)} - {""}
LOGGED = {  # (section, text)
    (LEVELS[name], text_of(argument))
    for tree in TREES
    for owner, name, argument in calls(tree)
    if owner in ("log", "_log") and name in LEVELS
}
FAILURES = {  # of the user's code: what `log_failure` is called with
    ("Errors", text_of(argument) + GAP)
    for tree in TREES
    for _, name, argument in calls(tree)
    if name == "log_failure"
}
WATCHDOG = {  # what its `_finding` returns
    ("Warnings", text)
    for text in map(text_of, (node for node in NODES if isinstance(node, ast.JoinedStr)))
    if text.startswith("event loop blocked")
}
UNTOLD = {text for text in LOGGED if not re.search(r"\w", text[1])}  # by those two, and LimitedLog
LINES = LOGGED - UNTOLD | FAILURES | WATCHDOG


def section(name: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {name}\n")
    assert found
    return rest.partition("\n## ")[0]


def headings(name: str) -> list[str]:
    return re.findall(r"^### `(.*)`$", section(name), re.MULTILINE)


def pattern(text: str, gap: str = "(.*?)") -> re.Pattern[str]:
    return re.compile(gap.join(map(re.escape, text.split(GAP))))


def says_something(text: str) -> bool:
    return len(re.findall(r"\w", text)) >= LEAST


def in_source(text: str) -> bool:
    """Whether it is a string of the source, or a part of one."""
    sought = pattern(text, ".*")
    return any(sought.search(string) for string in STRINGS)


def is_written(text: str, by: str) -> bool:
    """Whether a string of the source gives it, with other strings of the source in its gaps."""
    filled = pattern(by).fullmatch(text)
    return filled is not None and all(
        in_source(fill) for fill in filled.groups() if fill.strip(GAP + " ")
    )


TEXTS = sorted(
    {
        heading
        for name in ("Exceptions of the server", "Exceptions of the client")
        for heading in headings(name)
    }
    | set(re.findall(r"^\| `(.*?)` \|", PAGE[PAGE.index("\n## Errors\n") :], re.MULTILINE))
)


def test_the_source_was_read() -> None:
    """Else the tests below would find nothing, and pass."""
    assert len(LOGGED) > 15
    assert {("Warnings", GAP), ("Warnings", 2 * GAP), ("Errors", 2 * GAP)} == UNTOLD
    assert (len(FAILURES), len(WATCHDOG)) == (3, 1)


@pytest.mark.parametrize(("level", "text"), sorted(LINES))
def test_each_line_of_the_log_is_on_the_page(level: str, text: str) -> None:
    assert any(is_written(heading, by=text) for heading in headings(level))


@pytest.mark.parametrize("level", sorted(set(LEVELS.values())))
def test_each_line_on_the_page_is_in_the_source(level: str) -> None:
    lines = [text for at, text in LINES if at == level]
    unknown = [
        heading
        for heading in headings(level)
        if not any(is_written(heading, by=text) for text in lines)
    ]
    assert headings(level)
    assert unknown == []


@pytest.mark.parametrize("text", TEXTS)
def test_each_text_on_the_page_is_in_the_source(text: str) -> None:
    assert says_something(text)
    assert in_source(text) or any(
        is_written(text, by=string) for string in filter(says_something, STRINGS)
    )


def test_the_page_has_all_reasons() -> None:
    """Of refusals, evictions and handshakes that fail."""
    given = {
        text_of(argument)
        for tree in TREES
        for _, name, argument in calls(tree)
        if name in ("refuse", "postpone")
    }
    assert len(given) >= 7
    shown = re.findall(r"^\| `(.*?)` \|", section("Warnings"), re.MULTILINE)
    allowed = {"there is no allow-list"}  # cannot happen: `serve` refuses such options
    assert given - allowed <= set(shown) | {text + GAP for text in shown}
    assert {failure.value for failure in Failure if failure is not Failure.LEFT} <= set(shown)


def code_of(node: ast.expr) -> str:
    """The code of an error reply: a member of `Code`, or the gateway's own."""
    match node:
        case ast.Attribute(ast.Name("Code"), name):
            return trioreq.Code[name]
        case ast.Name("NO_WORKER"):
            return NO_WORKER
        case _:
            raise TypeError(ast.unparse(node))


def test_the_page_has_all_error_replies() -> None:
    shown = dict(re.findall(r"^\| `(.*)` \| `(.*)` \|$", section("Error replies"), re.MULTILINE))
    texts = {re.sub(r"\{\w+\}", GAP, one.text): one.code for one in ENDINGS if one.code}
    raised = {
        text_of(text): code_of(code)
        for node in NODES
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ReplyError"
        for code, text in [node.args]
        if text_of(text)
    }
    assert len(raised) >= 4
    assert shown == texts | raised
