"""The states of a client's connection, and the events that change them. Pure.

    Connecting --Accepted--> Handshaking --HandshakeSucceeded--> Connected --Lost--> Connecting
                                  |
                                  +--HandshakeFailed--> Refused, or Connecting again

A refused client connects again at the line's next attempt. `Closed` can follow each state, and is
the last. `NoConnection` leads to Connecting, with another hint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .._statistics import Timings
from .._transport.line import (
    NO_SERVER,
    Accepted,
    Event,
    HandshakeFailed,
    HandshakeSucceeded,
    Lost,
    NoConnection,
)

CLOSES = "it closes them in the handshake: does it require CURVE or PLAIN, or is it full?"


@dataclass(slots=True, eq=False)
class Negotiation:
    """What the client knows about the server on one connection.

    Attributes:
        speaks_header: Whether the server speaks the header; None until that is known.
        max_pack_size: Bytes of the largest pack that the server accepts; 0 for no packs.
        first: The correlation of the first request on the connection.
        asked_by: The correlation of the request that asks for a hello; 0 for none.
    """

    speaks_header: bool | None = None
    max_pack_size: int = 0
    first: int = 1
    asked_by: int = 0


# States compare by identity: to be refused again for the same reason is a change too.


@dataclass(frozen=True, slots=True, eq=False)
class Connecting:
    """There is no connection.

    Attributes:
        begun: When the client was opened, or the last connection lost, in trio's time.
        hint: A possible cause.
    """

    begun: float
    hint: str = NO_SERVER


@dataclass(frozen=True, slots=True, eq=False)
class Handshaking:
    """The server has accepted a connection, on which nothing can be sent yet.

    Attributes:
        begun: As in `Connecting`.
        accepted: When the server accepted it, in trio's time.
        hint: As in `Connecting`.
    """

    begun: float
    accepted: float
    hint: str


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """The server refuses the client.

    Attributes:
        begun: As in `Connecting`.
        reason: The reason, as far as it is known.
        hint: As in `Connecting`, while the next handshake takes place.
    """

    begun: float
    reason: str
    hint: str


@dataclass(frozen=True, slots=True, eq=False)
class Connected:
    """Requests can be sent.

    Attributes:
        timings: How long the connection took to make.
        negotiation: What is known about the server.
    """

    timings: Timings
    negotiation: Negotiation = field(default_factory=Negotiation)


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """The client is closed."""


State = Connecting | Handshaking | Refused | Connected | Closed


def next_state(state: State, event: Event, now: float) -> State:
    """The state after an event.

    Args:
        state: The one before.
        event: What has happened.
        now: When, in trio's time.
    """
    match state, event:
        case Connected(), Lost():
            return Connecting(now)
        case ((Connecting() | Refused()), NoConnection(hint)):
            return Connecting(state.begun, hint)
        case ((Connecting() | Handshaking() | Refused()), Accepted()):
            return Handshaking(state.begun, now, state.hint)
        case Handshaking(begun, accepted), HandshakeSucceeded():
            return Connected(Timings(accepted - begun, now - accepted, now))
        case ((Connecting() | Handshaking() | Refused()), HandshakeFailed(None)):
            return Connecting(state.begun, CLOSES)
        case ((Connecting() | Handshaking() | Refused()), HandshakeFailed(str(reason))):
            return Refused(state.begun, reason, state.hint)
        case Closed(), _:
            return state
    raise RuntimeError(f"{type(event).__name__} must not follow {type(state).__name__}")
