"""The line between a client and one server: what is told of its connection, and what it carries.

A line connects by itself, and connects again when the connection is lost. Its user pulls: `events`
and `receive` wait, and return what has happened since. There are two lines: a DEALER socket
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
        hint: What is known of why, and what to check.
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
        reason: What is wrong, if that is known: the next try is likely to fail too. None if the
            server has closed the connection without a reason.
    """

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone, with what was sent on it; the line connects again.

    Attributes:
        unread: The messages that came before the end, and that `receive` has not returned.
    """

    unread: list[list[bytes]]


Event = NoConnection | Accepted | HandshakeSucceeded | HandshakeFailed | Lost


class Line(Protocol):
    """What carries a client's messages.

    `events` and `receive` are for one task each. Neither loses anything when it is cancelled.
    """

    @property
    def max_pack_size(self) -> int:
        """Bytes of the largest pack that may be sent to the client; 0 if it uses no packs."""

    async def events(self) -> list[Event]:
        """Wait for the next events of the connection; returns them in their order."""

    async def receive(self) -> list[list[bytes]]:
        """Wait for messages; returns some that have come, in their order."""

    def send(self, messages: Sequence[Frames]) -> None:
        """Send messages; never waits.

        What is sent after the loss of the connection and before its `Lost` is dropped.
        """

    def successor(self) -> Line:
        """Make a line to the same server, beside this one, which is to connect no more."""

    def close(self) -> None:
        """Close at once."""

    async def aclose(self) -> None:
        """Close at once, and free what this line shares with its successors, which are closed."""
