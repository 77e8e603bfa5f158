"""What the server sends: each message to its own connection, or to none.

Messages that are ready one after the other are sent together while the outbox is corked, and those
for a client that accepts packs go in packs. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN

import trio

from .._log import log
from .._protocol import packs
from .._protocol.connection_table import Connection
from .._protocol.envelope import Frames
from .zsocket import ZSocket


class Outbox:
    """Messages that are ready, and the ROUTER that they are handed to.

    Args:
        router: The socket.
        read_monitor: Records which connections are gone by now.
        own_max_pack_size: Bytes of the largest pack that a client may send.

    Attributes:
        sent: Messages that were handed over.
        dropped_gone: Messages that were not, since the connection was gone.
        dropped_full: Messages that were not, since the connection's send queue was full.
    """

    def __init__(
        self, router: ZSocket, read_monitor: Callable[[], object], own_max_pack_size: int
    ) -> None:
        self._router = router
        self._read_monitor = read_monitor
        self._own_max_pack_size = own_max_pack_size
        self._messages: list[tuple[Connection, Frames]] = []
        self._corked = False
        self._packing = False
        self.sent = 0
        self.dropped_gone = 0
        self.dropped_full = 0

    @trio.lowlevel.enable_ki_protection  # half a message would begin the next one
    def send(self, connection: Connection, frames: Frames) -> None:
        """Hand a message to this connection or to none: now, or with others if corked."""
        if self._corked:
            self._messages.append((connection, frames))
            if connection.max_pack_size:
                self._packing = True
        else:
            self._hand_over(connection, frames)
            self._router.nudge()  # a send can eat the edge, also one that fails

    def cork(self) -> None:
        """Keep messages until `flush`. The caller does not wait for anything in between."""
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
        """Hand a message to its own connection, or to none; `nudge` follows."""
        if not connection.automatic:
            self._read_monitor()  # another connection may have the routing id by now
        if connection.gone:
            self.dropped_gone += packs.messages_in(frames)
            return
        error = self._router.send_to(connection.routing_id, frames)  # type: ignore[arg-type]
        if not error:
            self.sent += 1 if len(frames) > 1 else packs.messages_in(frames)
        elif error == EAGAIN:
            self._drop_for_full_queue(connection, frames)
        else:
            self.dropped_gone += packs.messages_in(frames)

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

    def _drop_for_full_queue(self, connection: Connection, frames: Frames) -> None:
        self.dropped_full += packs.messages_in(frames)
        if not connection.stalled:
            connection.stalled = True
            log.warning(
                "%s does not read its replies: its send queue is full, and replies are dropped "
                "(further ones are not logged)",
                connection.peer,
            )
