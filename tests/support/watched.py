"""A network in memory that writes down what the server reads, and what it hands over.

It looks at the sockets alone, and knows what is true of each connection. So it can tell what the
server has done wrong without asking the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio
import zmq

from trioreq._server import reader
from trioreq._transport.messages import Known, Names, Received
from trioreq._transport.routing_ids import PROBE
from trioreq.testing import MemoryNetwork
from trioreq.testing._libzmq import Connection, MemorySockets


class Watcher(Protocol):
    """Who is told."""

    def was_read(self, connection: Connection, frames: list[bytes]) -> None:
        """The server has read a message."""

    def was_handed_over(self, connection: Connection, frames: list[bytes]) -> None:
        """The server has handed a message over."""

    def fault(self, text: str) -> None:
        """The server has done what it must not."""


class WatchedNetwork(MemoryNetwork):
    """The network.

    Attributes:
        seen_disconnected: The connections whose end the server has read, and when.
        meanwhile: What libzmq's other thread does while the server reads: each is called at the
            next message that is read from the ROUTER, before it is.
        handed_over: How many messages were.
    """

    def __init__(self, nursery: trio.Nursery, watcher: Watcher) -> None:
        super().__init__(nursery, raise_handler_errors=False)
        self._watcher = watcher
        self.seen_disconnected: dict[Connection, float] = {}
        self.meanwhile: deque[Callable[[], object]] = deque()
        self.handed_over = 0
        self._read_before_answer = 0
        self._order: dict[tuple[int, Connection], int] = {}  # of the first event of each kind

    @property
    def sockets(self) -> MemorySockets:
        """Those of the server that is bound."""
        assert self._sockets is not None
        return self._sockets

    def bind(self, **options: Any) -> MemorySockets:
        sockets = super().bind(**options)
        self.handed_over = 0
        self.meanwhile.clear()
        self._watch_monitor(sockets)
        self._watch_reads(sockets)
        self._watch_sends(sockets)
        return sockets

    def _watch_monitor(self, sockets: MemorySockets) -> None:
        events: deque[tuple[int, Connection]] = deque()
        tell, read = sockets._put_event, sockets.monitor.receive

        def telling(event: int, connection: Connection, value: int | None = None) -> None:
            events.append((event, connection))
            self._order.setdefault((event, connection), len(self._order))
            tell(event, connection, value)

        def reading() -> list[bytes] | None:
            frames = read()
            if frames is not None:
                event, connection = events.popleft()
                if event == zmq.EVENT_DISCONNECTED:
                    self.seen_disconnected[connection] = trio.current_time()
            return frames

        sockets.__dict__["_put_event"] = telling
        sockets.monitor.receive = reading

    def _overlap(self, first: Connection, second: Connection) -> bool:
        """Whether one was accepted before the other ended: see the design on probes."""
        ended = self._order.get((zmq.EVENT_DISCONNECTED, first))
        return ended is None or ended > self._order[zmq.EVENT_ACCEPTED, second]

    def _watch_reads(self, sockets: MemorySockets) -> None:
        router = sockets.raw_router
        read = sockets.router.receive_from

        def reading(known: Known, names: Names, /) -> Received | None:
            if router._turns and self.meanwhile:
                self.meanwhile.popleft()()
            sender = router._turns[0] if router._turns else None
            message = read(known, names)
            if message is not None:
                self._read_before_answer += 1
                assert sender is not None
                self._watcher.was_read(sender, message[1])
            return message

        sockets.router.receive_from = reading

    def _watch_sends(self, sockets: MemorySockets) -> None:
        router = sockets.raw_router
        known: dict[bytes, list[Connection]] = {}
        attach, send_to = router.attach, sockets.router.send_to
        ask, answer = sockets.raw_zap.put, sockets.zap.send_to
        answering = False

        def asks(frames: Any) -> None:
            self._read_before_answer = 0
            ask(frames)

        def answers(routing_id: bytes, frames: Sequence[bytes], /) -> int:
            nonlocal answering
            answering = True
            error = answer(routing_id, frames)
            answering = False
            return error

        def attaching(connection: Connection) -> None:
            holder = router._table.get(connection.wanted) if connection.wanted else None
            attach(connection)
            if connection.routing_id is not None:
                known.setdefault(connection.routing_id, []).append(connection)
            elif (
                answering  # else it was the client that took its time
                and holder is not None
                and holder.ended
                and not holder.unflushed
                and self._read_before_answer < reader.CATCH_UP  # no more is promised
            ):
                self._watcher.fault("a newcomer was let in before its routing id was free")

        def sending(routing_id: bytes, frames: Sequence[bytes], /) -> int:
            holders = known.get(routing_id, [])
            probe = tuple(frames) == PROBE
            if not probe and all(connection in self.seen_disconnected for connection in holders):
                self._watcher.fault("G1: a message was handed over for a disconnected client")
            error = send_to(routing_id, frames)
            if error:
                return error
            connection = router._table[routing_id]
            if not probe:
                self.handed_over += 1
                self._watcher.was_handed_over(connection, list(frames))
            elif connection not in self.seen_disconnected and not any(
                self._overlap(holder, connection) for holder in holders
            ):
                self._watcher.fault("a probe reached a later connection")
            return 0

        sockets.raw_zap.__dict__["put"] = asks
        sockets.zap.send_to = answers
        router.__dict__["attach"] = attaching
        sockets.router.send_to = sending
