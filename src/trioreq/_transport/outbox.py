"""Sends messages: each to its own connection, or not at all.

While the outbox is corked, messages are collected, to be sent together; those for a client that
accepts packs are sent in packs. Messages that libzmq does not accept, because the client is slow,
are kept here in order and sent later. Nothing here waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from errno import EAGAIN

import trio
from trio_util import AsyncBool

from .._protocol import packs
from .._protocol.connection_table import Connection
from .._protocol.envelope import Frames
from .zsocket import ZSocket


class Unsent:
    """The messages that a connection has not accepted, in order.

    Attributes:
        since: When the client was last seen to read, by trio's clock: libzmq accepted a message, or
            a check found that more bytes are acknowledged.
        acked: Bytes that the client's system had acknowledged at the last check; None before it.
        checked: When that was.
        overflowed: Whether a message was dropped, because there were too many: the client is
            evicted.
        waiting: Functions that are called when nothing is kept any more. They wake the streams of
            the connection, which wait for this and for their client's credit.
    """

    __slots__ = ("acked", "checked", "messages", "overflowed", "since", "waiting")

    def __init__(self, now: float) -> None:
        self.messages: deque[Frames] = deque()
        self.since = now
        self.acked: int | None = None
        self.checked = -math.inf
        self.overflowed = False
        self.waiting: dict[Callable[[], object], None] = {}


class Outbox:
    """Hands messages to the ROUTER.

    Args:
        router: The socket.
        read_monitor: Records which clients have disconnected.
        own_max_pack_size: Bytes of the largest pack that a client may send.
        most_unsent: Maximum messages that are kept for one connection.

    Attributes:
        sent: Messages that were handed over.
        dropped: Messages that were not, because the client had disconnected or is evicted.
        unsent: The messages that are kept, by connection.
        has_unsent: Whether any messages are kept.
    """

    def __init__(
        self,
        router: ZSocket,
        read_monitor: Callable[[], object],
        own_max_pack_size: int,
        most_unsent: int,
    ) -> None:
        self._router = router
        self._read_monitor = read_monitor
        self._own_max_pack_size = own_max_pack_size
        self._messages: list[tuple[Connection, Frames]] = []
        self._corked = False
        self._packing = False
        self._most_unsent = most_unsent
        self._closed = False
        self.sent = 0
        self.dropped = 0
        self.unsent: dict[Connection, Unsent] = {}
        self.has_unsent = AsyncBool(False)

    @trio.lowlevel.enable_ki_protection  # an interrupt must not leave half a message
    def send(self, connection: Connection, frames: Frames) -> None:
        """Send a message to this connection, or drop it: now, or in `flush` if corked."""
        if self._corked:
            self._messages.append((connection, frames))
            if connection.max_pack_size:
                self._packing = True
        else:
            self._hand_over(connection, frames)
            self._router.nudge()  # a send can consume the signal of a received message

    def cork(self) -> None:
        """Collect messages until `flush`. No checkpoint is allowed in between."""
        self._corked = True

    @trio.lowlevel.enable_ki_protection
    def flush(self) -> None:
        """Hand over all messages, and uncork."""
        self._corked = False
        if not self._messages:
            return
        messages, self._messages = self._messages, []
        if self._packing:
            self._packing = False
            messages = self._packed(messages)
        for connection, frames in messages:
            self._hand_over(connection, frames)
        self._router.nudge()

    def _hand_over(self, connection: Connection, frames: Frames) -> None:
        """Hand a message to the ROUTER, or keep or drop it. The caller calls `nudge`."""
        if not connection.automatic:
            self._read_monitor()  # another connection may have the routing id now (G2)
        if connection.disconnected:
            self.dropped += packs.messages_in(frames)
        elif connection in self.unsent or not self._accepts(connection, frames):
            self._keep(connection, frames)  # after those already kept: replies stay in order

    def _accepts(self, connection: Connection, frames: Frames) -> bool:
        """Hand a message to the ROUTER; returns False if the connection accepts none now."""
        error = self._router.send_to(connection.routing_id, frames)  # type: ignore[arg-type]
        if error == EAGAIN:
            return False
        number = 1 if len(frames) > 1 else packs.messages_in(frames)
        if error:  # it has closed, and the monitor has not reported it yet
            self.dropped += number
        else:
            self.sent += number
        return True

    def _keep(self, connection: Connection, frames: Frames) -> None:
        """Keep a message that cannot be sent now, unless there are too many, or after `close`."""
        unsent = self.unsent.get(connection)
        if unsent is None:
            if self._closed:
                self.dropped += packs.messages_in(frames)
                return
            unsent = self.unsent[connection] = Unsent(trio.current_time())
            self.has_unsent.value = True
        if len(unsent.messages) >= self._most_unsent and not unsent.overflowed:
            # libzmq's thread may have sent some since. Any call makes the socket process that.
            self._router.readable()
            self._retry(connection, unsent)
            if not unsent.messages and self._accepts(connection, frames):
                return
            unsent.overflowed = len(unsent.messages) >= self._most_unsent
        if unsent.overflowed:
            self.dropped += packs.messages_in(frames)
        else:
            unsent.messages.append(frames)

    @trio.lowlevel.enable_ki_protection
    def retry(self) -> None:
        """Send the kept messages, as far as their connections accept them now."""
        if self.unsent:
            self._read_monitor()  # another connection may have a routing id now (G2)
            for connection, unsent in tuple(self.unsent.items()):
                self._retry(connection, unsent)
                if not (unsent.messages or unsent.overflowed):
                    self.forget(connection)
            self._router.nudge()

    def _retry(self, connection: Connection, unsent: Unsent) -> None:
        messages = unsent.messages
        while messages and not connection.disconnected and self._accepts(connection, messages[0]):
            messages.popleft()
            unsent.since = trio.current_time()

    def forget(self, connection: Connection) -> None:
        """Drop the messages that are kept for a connection, if any."""
        unsent = self.unsent.pop(connection, None)
        if unsent is not None:
            self.dropped += sum(map(packs.messages_in, unsent.messages))
            self.has_unsent.value = bool(self.unsent)
            for wake in unsent.waiting:
                wake()

    def close(self) -> None:
        """Send the kept messages for the last time, and keep no more from now on."""
        self._closed = True
        self.retry()
        for connection in tuple(self.unsent):
            self.forget(connection)

    def _packed(self, messages: list[tuple[Connection, Frames]]) -> list[tuple[Connection, Frames]]:
        """Put messages for the same connection into packs, if its client accepts them."""
        by_connection: dict[Connection, list[Frames]] = {}
        for connection, frames in messages:
            by_connection.setdefault(connection, []).append(frames)
        packed: list[tuple[Connection, Frames]] = []
        for connection, together in by_connection.items():
            if connection.max_pack_size and len(together) > 1:
                together = packs.pack(together, connection.max_pack_size, self._own_max_pack_size)
            packed.extend([(connection, frames) for frames in together])
        return packed
