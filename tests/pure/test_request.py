"""What a handler is given. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trioreq import CancelReason, Peer, Request, RequestCancelled, _request
from trioreq._request import without_session


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


def test_a_session_in_another_process_has_no_special_methods() -> None:
    """Otherwise `copy` and `pickle` would call what they find."""
    state = without_session(Peer(7, "127.0.0.1", "REQ")).state
    assert not hasattr(state, "__deepcopy__")
    with pytest.raises(RuntimeError):
        _ = state.name


def test_two_threads_that_use_a_state_first_have_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = Request(Peer(7, "127.0.0.1", "REQ"), (b"one",))
    others = []

    @contextmanager
    def another_thread_is_first() -> Iterator[None]:
        monkeypatch.undo()
        others.append(request.state)
        yield

    monkeypatch.setattr(_request, "_making_state", another_thread_is_first())
    assert [request.state] == others
