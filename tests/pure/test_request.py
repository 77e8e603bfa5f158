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


def test_a_replaced_request_is_the_same_with_another_body() -> None:
    request = Request(Peer(7, "127.0.0.1", "REQ"), (b"one", b"two"), 5.0)
    request.state.name = "alice"
    again = request.replace(frames=(b"three",)).replace(frames=(b"four",))
    assert again.frames == (b"four",)
    assert request.frames == (b"one", b"two")
    assert (again.body, again.client, again.deadline) == (b"four", request.client, 5.0)
    assert again.state is request.state
    assert again.cancel_reason is None
    again.check_cancelled()
    request._cancel_reason = CancelReason.DISCONNECTED
    assert again.cancel_reason is CancelReason.DISCONNECTED
    assert repr(again) == "<Request of client 7, 1 frames, disconnected>"
    with pytest.raises(RequestCancelled):
        again.check_cancelled()


def test_the_state_of_a_request_is_its_own() -> None:
    client = Peer(7, "127.0.0.1", "REQ")
    one, two = Request(client, (b"",)), Request(client, (b"",))
    one.state.name = "alice"
    assert not hasattr(two.state, "name")
    assert not hasattr(client.state, "name")
