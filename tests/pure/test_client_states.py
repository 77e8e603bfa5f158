"""The states of a client's connection. Pure."""

from __future__ import annotations

import pytest

import trioreq
from trioreq._client.states import (
    CLOSES,
    Closed,
    Connected,
    Connecting,
    Handshaking,
    Refused,
    State,
    next_state,
)
from trioreq._transport.line import (
    NO_SERVER,
    Accepted,
    Event,
    HandshakeFailed,
    HandshakeSucceeded,
    Lost,
    NoConnection,
)


def after(*events: Event, state: State | None = None) -> State:
    """The state after events of which the first comes at 1, the second at 2, and so on."""
    state = state or Connecting(0)
    for now, event in enumerate(events, 1):
        state = next_state(state, event, now)
    return state


def test_a_connection_has_its_timings() -> None:
    state = after(Accepted(), HandshakeSucceeded())
    assert isinstance(state, Connected)
    assert state.timings == trioreq.Timings(connect=1, handshake=1, since=2)


def test_failed_attempts_count_to_the_time_of_the_connection() -> None:
    failed = HandshakeFailed(), Accepted(), HandshakeFailed("why")
    state = after(Accepted(), *failed, Accepted(), HandshakeSucceeded())
    assert isinstance(state, Connected)
    assert state.timings == trioreq.Timings(connect=5, handshake=1, since=6)


def test_a_lost_connection_is_followed_by_connecting() -> None:
    state = after(Accepted(), HandshakeSucceeded(), Lost([]))
    assert isinstance(state, Connecting)
    assert (state.begun, state.hint) == (3, NO_SERVER)


def test_each_connection_has_its_own_negotiation() -> None:
    first = after(Accepted(), HandshakeSucceeded())
    second = after(Lost([]), Accepted(), HandshakeSucceeded(), state=first)
    assert isinstance(first, Connected)
    assert isinstance(second, Connected)
    assert first.negotiation is not second.negotiation


def test_a_handshake_that_fails_without_a_reason_leaves_a_hint() -> None:
    state = after(Accepted(), HandshakeFailed())
    assert isinstance(state, Connecting)
    assert state.hint == CLOSES
    state = after(Accepted(), state=state)
    assert isinstance(state, Handshaking)
    assert state.hint == CLOSES


def test_the_hint_of_an_attempt_to_connect_holds_until_the_next() -> None:
    state = after(NoConnection("no such name"), NoConnection("nobody answers"))
    assert isinstance(state, Connecting)
    assert (state.begun, state.hint) == (0, "nobody answers")
    state = after(Accepted(), HandshakeFailed("why"), NoConnection("no such name"))
    assert isinstance(state, Connecting)
    assert (state.begun, state.hint) == (0, "no such name")


def test_a_refused_client_has_the_reason() -> None:
    state = after(Accepted(), HandshakeFailed("why"))
    assert isinstance(state, Refused)
    assert state.reason == "why"


def test_two_refusals_are_two_states() -> None:
    """AsyncValue wakes no task for a value that equals the last one."""
    refused = after(Accepted(), HandshakeFailed("why"))
    again = after(HandshakeFailed("why"), state=refused)
    assert isinstance(again, Refused)
    assert again != refused


@pytest.mark.parametrize(
    "event",
    [NoConnection("why"), Accepted(), HandshakeSucceeded(), HandshakeFailed(), Lost([])],
)
def test_closed_is_the_last(event: Event) -> None:
    closed = Closed()
    assert after(event, state=closed) is closed


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([HandshakeSucceeded()], "HandshakeSucceeded must not follow Connecting"),
        ([Lost([])], "Lost must not follow Connecting"),
        ([Accepted(), HandshakeSucceeded(), Accepted()], "Accepted must not follow Connected"),
        ([Accepted(), NoConnection("why")], "NoConnection must not follow Handshaking"),
    ],
)
def test_an_impossible_event_is_an_error(events: list[Event], says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        after(*events)
