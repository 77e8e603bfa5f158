"""A network in memory that writes down what the server reads, and what it hands over.

It looks at the sockets alone, and knows what is true of each connection. So it can tell what the
server has done wrong without asking the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import trio
import zmq

from trioreq import _router
from trioreq.testing import MemoryNetwork
from trioreq.testing._libzmq import Connection, MemoryFrame, MemorySockets


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
        seen_gone: The connections whose end the server has read, and when.
        meanwhile: What libzmq's other thread does while the server reads: each is called at the
            next message that is read from the ROUTER, before it is.
        handed_over: How many messages were.
    """

    def __init__(self, nursery: trio.Nursery, watcher: Watcher) -> None:
        super().__init__(nursery)
        self._watcher = watcher
        self.seen_gone: dict[Connection, float] = {}
        self.meanwhile: deque[Callable[[], object]] = deque()
        self.handed_over = 0
        self._read_for_the_gate = 0

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
        tell, read = sockets._tell, sockets.raw_monitor._next

        def telling(event: int, connection: Connection) -> None:
            events.append((event, connection))
            tell(event, connection)

        def reading() -> list[MemoryFrame]:
            frames = read()
            event, connection = events.popleft()
            if event == zmq.EVENT_DISCONNECTED:
                self.seen_gone[connection] = trio.current_time()
            return frames

        sockets.__dict__["_tell"] = telling
        sockets.raw_monitor.__dict__["_next"] = reading

    def _watch_reads(self, sockets: MemorySockets) -> None:
        router = sockets.raw_router
        read = router._next

        def reading() -> list[MemoryFrame]:
            if router._turns and self.meanwhile:
                self.meanwhile.popleft()()
            sender = router._turns[0] if router._turns else None
            frames = read()  # an exception if there is none
            self._read_for_the_gate += 1
            assert sender is not None
            self._watcher.was_read(sender, [frame.bytes for frame in frames[1:]])
            return frames

        router.__dict__["_next"] = reading

    def _watch_sends(self, sockets: MemorySockets) -> None:
        router = sockets.raw_router
        known: dict[bytes, list[Connection]] = {}
        attach, hand_over, send = router.attach, router.send_multipart, sockets.router.send
        ask, answer = sockets.raw_gate.put, sockets.raw_gate.send_multipart
        answering = False

        def asks(frames: Any) -> None:
            self._read_for_the_gate = 0
            ask(frames)

        def answers(msg_parts: Any, flags: int = 0) -> None:
            nonlocal answering
            answering = True
            answer(msg_parts, flags)
            answering = False

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
                and self._read_for_the_gate < _router.CATCH_UP  # no more is promised
            ):
                self._watcher.fault("a newcomer was let in before its routing id was free")

        def handing_over(msg_parts: Any, flags: int = 0) -> None:
            routing_id, *frames = msg_parts
            self.handed_over += 1
            self._watcher.was_handed_over(router._table[routing_id], frames)
            hand_over(msg_parts, flags)

        def sending(data: bytes, flags: int = 0) -> Any:
            if not router._parts:
                holders = known.get(data, [])
                if all(connection in self.seen_gone for connection in holders):
                    self._watcher.fault("G1: a message was handed over for who was seen gone")
            return send(data, flags)

        sockets.raw_gate.__dict__["put"] = asks
        sockets.raw_gate.__dict__["send_multipart"] = answers
        router.__dict__["attach"] = attaching
        router.__dict__["send_multipart"] = handing_over
        sockets.router.send = sending
