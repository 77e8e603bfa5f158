"""The line between server and client and what carries their bytes.

The router tells the server of its connections through `Host` and `Session`, which sends through
`Link`. All of it is synchronous: state changes between checkpoints, never across one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from .._protocol.envelope import Frames
from .._request import Peer


class Unsent(Enum):
    """Why a message was not handed over."""

    GONE = "the connection is gone"
    FULL = "the connection's send queue is full"


class Link(Protocol):
    """A connection, as the server sees it.

    Attributes:
        max_pack_size: Bytes of the largest pack that the client takes; 0 for none. Set when it
            tells.
        own_max_pack_size: Bytes of the largest pack that it may send.
    """

    max_pack_size: int
    own_max_pack_size: int

    @property
    def client(self) -> Peer:
        """Who is on the other end."""

    def send(self, frames: Frames) -> None:
        """Hand a message over, soon, to this connection or to nobody; never waits."""


class Session(Protocol):
    """A connection, as the transport sees it: what the server keeps for it."""

    def arrived(self, frames: list[bytes]) -> None:
        """A message came. It may still come after `left`."""

    def unsent(self, why: Unsent) -> None:
        """A message for it was thrown away."""

    def left(self) -> None:
        """The connection is gone."""


class Host(Protocol):
    """The server, as the transport sees it."""

    def joined(self, link: Link) -> Session:
        """A connection has sent its first message."""

    def unattributed(self) -> None:
        """A message came whose connection is gone."""

    def start(self) -> None:
        """Start what has arrived, though nobody waits for that just now."""


class Outgoing(Protocol):
    """What is to be sent, as what runs handlers sees it.

    Attributes:
        holding: Set to have replies go out together that are ready one after the other, with
            nothing awaited in between; `release` unsets it.
    """

    holding: bool

    def gather(self, work: Callable[[], object]) -> None:
        """Do what may send many messages, and let them go out together."""

    def release(self) -> None:
        """Let go out what is held."""


class Carrier(Protocol):
    """The transport, as what runs handlers sees it."""

    @property
    def outbox(self) -> Outgoing:
        """What is to be sent."""

    async def receive(
        self, first: int = ..., before_wait: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until something has arrived; for one task at a time.

        Args:
            first: Bytes to read after a wait, at the most, before what came is worked on.
            before_wait: Called before each wait; returns whether it may have sent something.

        Returns:
            Whether it has waited, so that trio's other tasks had their turn.
        """
