"""The exceptions' own rules. Pure: no clock, no sockets."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import trioreq
import trioreq.testing

ARGUMENTS: dict[str, object] = {
    "str": "word",
    "tuple[bytes, ...]": (b"1", b"2"),
    "int": 17,
    "CancelReason": trioreq.CancelReason.DEADLINE,
}
"""What an exception may be made of, by the annotations of its parameters."""

EXCEPTIONS = [
    value
    for module in (trioreq, trioreq.testing)
    for name in module.__all__
    if isinstance(value := getattr(module, name), type) and issubclass(value, BaseException)
]


class NotFound(trioreq.ReplyError):
    """A user's own, which is made of something else than the error that it is."""

    def __init__(self, number: int) -> None:
        super().__init__("not-found", f"there is no image {number}")
        self.number = number


def pickled(protocol: int) -> Callable[[Any], Any]:
    """As another process gets it."""
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


COPIES: tuple[Callable[[Any], Any], ...] = (
    copy.copy,
    copy.deepcopy,
    *(pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
)


def made(kind: type[BaseException]) -> BaseException:
    """An exception of this kind, as trioreq or a user makes it."""
    if "__init__" not in vars(kind):
        return kind("what is wrong")
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(*(ARGUMENTS[parameter.annotation] for parameter in parameters))


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("kind", [*EXCEPTIONS, NotFound])
def test_an_exception_can_be_copied_and_pickled(
    kind: type[BaseException], make: Callable[[Any], Any]
) -> None:
    """Else one that is raised in a worker process breaks the pool (cpython#76877, #103061)."""
    error = made(kind)
    error.add_note("in the worker")
    copied = make(error)
    assert type(copied) is kind
    assert (str(copied), copied.args) == (str(error), error.args)
    assert vars(copied) == vars(error)
    assert copied.__notes__ == ["in the worker"]


def test_all_exceptions_are_tried() -> None:
    """Else the test above would hold of nothing."""
    assert {trioreq.TrioreqError, trioreq.RequestCancelled} < set(EXCEPTIONS)
    assert len(EXCEPTIONS) >= 9


@pytest.mark.parametrize("code", ["", "two words", "new\nline", "nö", "tab\t"])
def test_a_code_is_one_word(code: str) -> None:
    with pytest.raises(ValueError, match="one word"):
        trioreq.ReplyError(code)


def test_a_reply_error_shows_its_code_and_text() -> None:
    assert str(trioreq.ReplyError("not-found", "no image 17")) == "not-found: no image 17"
    assert str(trioreq.ReplyError("not-found")) == "not-found"


def test_a_cancelled_request_is_not_an_ordinary_exception() -> None:
    error = trioreq.RequestCancelled(trioreq.CancelReason.DEADLINE)
    assert not isinstance(error, Exception)
    assert error.reason == "deadline"
    assert str(error) == "deadline"


def test_check_cancelled_needs_a_request() -> None:
    with pytest.raises(RuntimeError, match=r"request\.check_cancelled\(\)"):
        trioreq.check_cancelled()
