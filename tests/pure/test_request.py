"""What a handler is given. Pure."""

from __future__ import annotations

import math

import pytest

from trioreq import CancelReason, Peer, Request, RequestCancelled


def test_a_request_says_what_it_is() -> None:
    request = Request(Peer(7, "127.0.0.1", "REQ"), (b"one", b"two"))
    assert repr(request) == "<Request of client 7, 2 frames>"
    assert request.body == b"one"
    assert request.deadline == math.inf
    assert request.cancel_reason is None
    request.check_cancelled()
    request._cancel_reason = CancelReason.SHUTDOWN
    assert repr(request) == "<Request of client 7, 2 frames, shutdown>"
    with pytest.raises(RequestCancelled) as caught:
        request.check_cancelled()
    assert caught.value.reason is CancelReason.SHUTDOWN
