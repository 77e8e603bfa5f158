"""What carries a client's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .._protocol.envelope import Frames


class Asker(Protocol):
    """The client, as its transport sees it."""

    def connecting(self) -> None:
        """The other side has accepted; the handshake begins."""

    def connected(self) -> None:
        """There is a connection: messages can be sent."""

    def refused(self, why: str) -> None:
        """The server does not let the client in; the transport goes on trying."""

    def turned_away(self) -> None:
        """The server has closed a connection in the handshake, and has not said why."""

    def arrived(self, frames: Sequence[bytes]) -> None:
        """A message came."""

    def lost(self) -> None:
        """There is no connection any more; the transport tries for a new one."""


class Line(Protocol):
    """What carries a client's bytes.

    Attributes:
        max_pack_size: Bytes of the largest pack that the server takes; 0 for none. Set when it
            tells, and 0 again for each new connection.
    """

    max_pack_size: int

    async def run(self, asker: Asker) -> None:
        """Carry, until cancelled."""

    def send(self, frames: Frames) -> bool:
        """Hand a message over; returns False, and forgets it, if there is no connection."""

    async def aclose(self) -> None:
        """Close at once."""
