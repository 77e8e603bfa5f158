"""The connection table: finds the connection that a message came on.

libzmq's socket monitor reports that a connection was accepted or disconnected, with its file
descriptor; a message names the descriptor that it was read from. Descriptors are reused at once, so
the descriptor alone can name the wrong connection. The epoch makes it exact: when a connection is
accepted, the table has all events up to then, and the connection's messages carry the number of the
newest one.

- Events are numbered 1, 2, 3, ...; a connection's id is the number of its accept.
- A descriptor has one holder at a time, whose disconnect is reported before the descriptor is free.
- So the sender of (descriptor, epoch) is the present holder, if that was accepted at or before the
  epoch. Otherwise the holder was accepted later, and the sender is disconnected.

Only open connections are kept. docs/design.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._request import Peer
    from .message_guard import Watch
    from .unheard import Silence


class Connection:
    """One connection, from its accept to its disconnect. There is no other record of it.

    Attributes:
        id: Unique for the server's life.
        descriptor: The descriptor that it has, or had.
        disconnected: Whether its disconnect was read, or the server has evicted it. Nothing is sent
            to it then.
        since: When its accept was read, on the clock of the caller.
        address: Its IP address or, on ipc, its user; empty if it closed before that was looked up.
        counted: Whether it counts against the limits.
        slow: Whether a wait for the rest of its handshake has timed out.
        spoke: Whether bytes had arrived when its address was looked up.
        routing_id: Its routing id; None before its first message.
        automatic: Whether libzmq made the routing id, and so never uses it again.
        peer: The client, as handlers see it; None before its first message.
        client: What the server keeps for it; None before its first message.
        max_pack_size: Bytes of the largest pack that the client accepts; 0 for none.
        watch, began: The state of `message_guard`.
        silence: The state of `unheard`.
    """

    __slots__ = (
        "address",
        "automatic",
        "began",
        "client",
        "counted",
        "descriptor",
        "disconnected",
        "id",
        "max_pack_size",
        "peer",
        "routing_id",
        "silence",
        "since",
        "slow",
        "spoke",
        "watch",
    )

    def __init__(self, id: int, descriptor: int) -> None:  # noqa: A002  # the plain name
        self.id = id
        self.descriptor = descriptor
        self.disconnected = False
        self.since = 0.0
        self.address = ""
        self.counted = False
        self.slow = False
        self.spoke = False
        self.routing_id: bytes | None = None
        self.automatic = False
        self.peer: Peer | None = None
        self.client: Any = None
        self.max_pack_size = 0
        self.watch: Watch | None = None
        self.began: int | None = 0
        self.silence: Silence | None = None


class ConnectionTable:
    """The open connections, by descriptor.

    Attributes:
        epoch: The number of the newest event.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._holders: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._holders.values()))

    def accepted(self, descriptor: int) -> tuple[Connection, Connection | None]:
        """Record that a connection was accepted.

        Returns:
            The connection, and the one before it on this descriptor if its disconnect was never
            reported; that one is disconnected now. The latter is normally None.
        """
        unreported = self._holders.get(descriptor)
        if unreported is not None:
            unreported.disconnected = True
        self.epoch += 1
        connection = self._holders[descriptor] = Connection(self.epoch, descriptor)
        return connection, unreported

    def disconnected(self, descriptor: int) -> Connection | None:
        """Record that the connection on a descriptor was disconnected.

        Returns:
            The connection; None if it was evicted before.
        """
        self.epoch += 1
        connection = self._holders.pop(descriptor, None)
        if connection is not None:
            connection.disconnected = True
        return connection

    def evicted(self, connection: Connection) -> None:
        """Record that a connection was evicted, before its disconnect is reported."""
        del self._holders[connection.descriptor]
        connection.disconnected = True

    def sender(self, descriptor: int, epoch: int) -> Connection | None:
        """The connection that a message came on; None if it is disconnected."""
        # A holder above the epoch was accepted after the sender, which must have disconnected.
        holder = self._holders.get(descriptor)
        return holder if holder is not None and holder.id <= epoch else None
