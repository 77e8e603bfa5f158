"""The line between a client and one server: the events of its connection, and its messages.

A line connects by itself, and connects again when the connection is lost. `events` and `receive`
wait, and return what has happened since the last call. There are two lines: a DEALER socket
(`dealer`), and one on a network in memory (`trioreq.testing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from .._protocol.envelope import Frames

NO_SERVER: Final = "does a server listen there? Check the address, and that the server runs"


@dataclass(frozen=True, slots=True)
class NoConnection:
    """The server has not accepted a connection yet; the line tries again.

    Attributes:
        hint: The cause as far as it is known, and what to check.
    """

    hint: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server has accepted a connection; the handshake begins."""


@dataclass(frozen=True, slots=True)
class HandshakeSucceeded:
    """Messages can be sent, and received, from now on."""


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The handshake has failed; the line tries again.

    Attributes:
        reason: The cause, if it is known: the next attempt is likely to fail too. None if the
            server has closed the connection without a reason.
    """

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection was lost, with the messages that were sent on it; the line connects again.

    Attributes:
        unread: Messages that arrived before, and that `receive` has not returned.
    """

    unread: list[list[bytes]]


Event = NoConnection | Accepted | HandshakeSucceeded | HandshakeFailed | Lost


class Line(Protocol):
    """Carries a client's messages.

    `events` and `receive` are for one task each. Neither loses an event or a message when it is
    cancelled.
    """

    @property
    def max_pack_size(self) -> int:
        """Bytes of the largest pack that may be sent to the client; 0 if it uses no packs."""

    async def events(self) -> list[Event]:
        """Wait for the next events of the connection; returns them in their order."""

    async def receive(self) -> list[list[bytes]]:
        """Wait for messages; returns some that have arrived, in their order."""

    def send(self, messages: Sequence[Frames]) -> None:
        """Send messages; never waits.

        Messages between the loss of the connection and its `Lost` are dropped.
        """

    async def aclose(self) -> None:
        """Close at once."""
