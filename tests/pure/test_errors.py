"""The exceptions' own rules. Pure: no clock, no sockets."""

from __future__ import annotations

import pytest

import trioreq


@pytest.mark.parametrize("code", ["", "two words", "new\nline", "nö", "tab\t"])
def test_a_code_is_one_word(code: str) -> None:
    with pytest.raises(ValueError, match="one word"):
        trioreq.ReplyError(code)


def test_what_a_reply_error_says() -> None:
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
