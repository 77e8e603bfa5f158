"""The words of the source and of test names. Pure: reads the files.

Docstrings, comments, texts of the log and of errors, and names of tests use the terms of
docs/glossary.md, one for each thing, and not these.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import trioreq

ROOT = Path(__file__).parents[2]
SOURCE = Path(trioreq.__file__).parent
FILES = [*SOURCE.rglob("*.py"), *SOURCE.parent.glob("*trioreq*.py"), *SOURCE.rglob("*.c")]
GIVEN_UP = r"""(?ix)
\b(
    gone | goes\ away | vanish(es|ed)? | falls?\ silent  # disconnected, closed, lost, stopped
    | who | whom | whoever | nobody | somebody | anybody | everybody  # the client, the task
    | lets?\ (in|it\ in) | may\ come\ in  # accept
    | turn(s|ed)?\ away | strangers? | newcomers?  # refuse, a new connection
    | thr(ow|ew|ows|own)\ (it\ |them\ )?out  # evict
    | anew | in\ vain | in\ earnest | for\ ever | for\ good
    | (?<!there\ ) (is|are)\ no(?!\ longer) | (an?\ )?\w+\ that\ is\ none  # is not a
    | tells? | told  # report, send, answer
    | gives?\ up | gave\ up  # cancel
    | notices? | noticed | finds?\ out | found\ out  # detect
    | in\ the\ place\ of(?!\ one)  # instead of
    | holds?\ \w+\ up | held\ up | trio's\ loop | loop\ turns  # the event loop is blocked
    | looks?\ around | now\ and\ then  # check, at intervals
    | people  # humans
)\b
"""
WORDS = re.compile(GIVEN_UP)
NAMES = re.compile(
    r"_(gone|who|whom|nobody|somebody|anybody|everybody|anew|let_in|lets_in|comes_in|thrown_out"
    r"|throws|for_ever|tells?|told|turns|gate|(?<!there_)(is|are)_no(?!_longer)|what_(is|has|was|a|the)"
    r"|people|holds_\w+_up|holds_up)(?=_|$)"
)


def prose(path: Path) -> Iterator[str]:
    """The comments and the strings of a file."""
    text = path.read_text()
    if path.suffix == ".c":
        yield from re.findall(r"/\*.*?\*/", text, re.DOTALL)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.string


def names_of_tests() -> Iterator[str]:
    """The names of all tests."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        yield from re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)


def test_the_words_are_found() -> None:
    """Otherwise the tests below would hold for any text."""
    found = [
        "It is gone.",
        "the client who sends",
        "lets it in",
        "a key that is thrown out",
        "send it anew",
        "wait for ever",
        "what is no request",
        "the socket tells",
    ]
    assert [text for text in found if not WORDS.search(text)] == []
    assert not WORDS.search("there is no reply, the whole reply is no longer needed")
    assert NAMES.search("test_a_client_who_is_gone")
    assert {path.name for path in FILES} >= {"server.py", "_cmessages.c", "pytest_trioreq.py"}
    assert "test_the_words_are_found" in names_of_tests()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE.parent)))
def test_the_source_is_in_plain_words(path: Path) -> None:
    text = " ".join(re.sub(r"\s+#?\s*", " ", part) for part in prose(path))
    assert [match[0] for match in WORDS.finditer(text)] == []


def test_names_of_tests_are_in_plain_words() -> None:
    assert [name for name in names_of_tests() if NAMES.search(name)] == []
