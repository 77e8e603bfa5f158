"""The ROUTER and its monitor: reads batches of messages, and events of connections.

Nothing here waits for a client. docs/design.md has the rules, and the reasons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NoReturn

import trio
import zmq
from trio_util import AsyncBool

from .._log import log
from .._protocol import packs
from .._protocol.addresses import canonical
from .._protocol.connection_limits import ConnectionLimits
from .._protocol.connection_table import Connection, ConnectionTable
from .._protocol.handshakes import Failure, Handshakes
from .._protocol.message_guard import MessageGuard
from .._request import Peer
from . import server_sockets
from .curve_keys import KeyPair
from .handshake_events import EVENT, failure_of
from .held_connections import HeldConnections
from .messages import Origin
from .outbox import Outbox
from .routing_ids import RoutingIds
from .server_sockets import HeldConnection, Sockets
from .zap_handler import EPOCH, PUBLIC_KEY

BATCH: Final = 256 * 1024  # bytes of a batch: what fits into a processor's cache
AUTOMATIC_ID: Final = 5  # bytes of a routing id that libzmq has made
LONGEST_ID: Final = 255  # bytes that one may have by ZMTP; libzmq accepts any
MESSAGE: Final = 2048  # bytes that a message of one frame counts as, beside its content
OUT_OF_DESCRIPTORS = (
    "the process has nearly as many file descriptors open as it may (ulimit -n): new connections "
    "are closed until some are free"
)
DRAINING = "the server drains, and accepts no more connections"
PROPERTIES: Final = (EPOCH, "Peer-Address", "Socket-Type", "User-Id", PUBLIC_KEY)

Message = tuple[Connection, list[bytes]]


class Router:
    """The ROUTER, its monitor, and the connection table.

    Args:
        sockets: The server's sockets.
        limits: How many connections are accepted.
        most_unsent: Maximum messages that the outbox keeps for one connection.
        disconnected: Called with connections that have disconnected, and are marked so already.
        refused: Called with the address of a connection that a limit refuses, and the reason.
        handshake_failed: Called with the address of a connection whose handshake failed, which is
            empty if it is unknown, and the reason. These three are calls upwards, so that an event
            takes effect in the step in which it is read, in whichever task.

    Attributes:
        outbox: Sends messages.
        guard: Decides about messages without end.
        handshakes: The connections whose handshakes may be in progress.
        weight: Bytes of the messages that were read, as a batch counts them.
        unattributed: Requests that were read after their connection was forgotten.
        evicted: How many connections were evicted.
        own_routing_ids: How many open connections have an explicit routing id.
        closed_routing_ids: Explicit routing ids of connections that have closed.
    """

    def __init__(
        self,
        sockets: Sockets,
        limits: ConnectionLimits,
        most_unsent: int,
        disconnected: Callable[[list[Connection]], object],
        refused: Callable[[str, str], object],
        handshake_failed: Callable[[str, Failure], object],
    ) -> None:
        self._sockets = sockets
        self._socket = sockets.router
        self._monitor = sockets.monitor
        self._limits = limits
        self._disconnected = disconnected
        self._refused = refused
        self._handshake_failed = handshake_failed
        self._table = ConnectionTable()
        self._automatic: dict[bytes, Connection] = {}  # by routing id, while they are open
        self.own_max_pack_size = packs.max_size(sockets.max_message_size)
        self.outbox = Outbox(sockets.router, self.read_monitor, self.own_max_pack_size, most_unsent)
        self.guard = MessageGuard(sockets.max_message_size)
        self.handshakes = Handshakes()
        self.weight = 0
        self.unattributed = 0
        self.evicted = 0
        self.own_routing_ids = 0
        self.closed_routing_ids = RoutingIds(sockets.router)
        self._occupied = AsyncBool(False)
        self._new: deque[Connection] = deque()  # accepted, and not checked yet
        self._first_heard: list[Connection] = []  # since the monitor was last read
        self._failure: Failure | None = None  # of the handshake whose disconnect is reported next
        self._held = HeldConnections(self._table, sockets.room, sockets.max_message_size)
        self._newest_reply = 0
        self._listeners: list[int] = []  # descriptors
        self._retired: list[int] = []  # listeners with former keys, which accept no more
        self._draining = False

    def __len__(self) -> int:
        """The number of open connections, including those that have sent nothing."""
        return len(self._table)

    @property
    def connections(self) -> Iterable[Connection]:
        """The open connections."""
        return self._table

    async def watch(self) -> NoReturn:
        """Read the monitor whenever it has events, until cancelled."""
        await self._monitor.keep_reading(self.read_monitor)

    async def wait(self) -> None:
        """Wait until there may be a message. The last `read_batch` has found none."""
        await self._socket.wait()

    async def wait_occupied(self) -> None:
        """Wait until there is a connection."""
        self._occupied.value = len(self._table) > 0
        await self._occupied.wait_value(True)

    def wake(self) -> None:
        """Wake the task in `wait` if there is a message, after another call on the socket."""
        self._socket.nudge()

    def readable(self) -> bool:
        """Whether there is a message."""
        return self._socket.readable()

    def read_monitor(self) -> int:
        """Record which connections were accepted and disconnected; returns the epoch."""
        disconnected: list[Connection] = []
        self._read_events(disconnected)
        while self._new:
            # One at a time: a burst of connections must not take a second descriptor for each.
            connection = self._new.popleft()
            self._held.make_room()
            hold = None if connection.disconnected else self._sockets.hold(connection.descriptor)
            if hold is not None:
                spoke = self._has_received(connection)
                # A connection that is not disconnected after this is the one that is held: its
                # descriptor was not free for another one in between.
                self._read_events(disconnected)
                self._check_new(connection, hold, spoke=spoke)
        if self._first_heard:
            for connection in self._first_heard:
                self._report("", self.handshakes.heard(connection))
            self._first_heard.clear()
        if self.handshakes.undecided:
            begun = trio.current_time() - 2 * server_sockets.HANDSHAKE  # libzmq's timer may be late
            self._report("", self.handshakes.outlasted(begun))
        if disconnected:
            self._disconnected(disconnected)
        return self._table.epoch

    def epoch_of_replies(self) -> int:
        """The epoch for ZAP replies, which must be sent before the next checkpoint."""
        self._newest_reply = self.read_monitor()
        return self._newest_reply

    def _read_events(self, disconnected: list[Connection]) -> None:
        """Read the monitor until it is empty."""
        receive, handshakes = self._monitor.receive, self.handshakes
        now = trio.current_time()
        while (frames := receive()) is not None:
            event, value = EVENT.unpack(frames[0])
            if event == zmq.EVENT_ACCEPTED:
                connection, before = self._table.accepted(value)
                connection.since = now
                handshakes.begun(connection, now)
                self._new.append(connection)
                if not self._occupied.value:
                    self._occupied.value = True
                if before is not None:
                    self._report("", handshakes.ended(before, None))
            elif event == zmq.EVENT_DISCONNECTED:
                before = self._table.disconnected(value)
                if before is not None:
                    self._ended(before)
                else:
                    self._report("", handshakes.closed_ended(value, self._failure))
                self._failure = None
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                handshakes.succeeded()
                continue
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                handshakes.refused()
                continue
            elif event == zmq.EVENT_LISTENING:
                self._listeners.append(value)
                continue
            else:
                self._failure = failure_of(event, value)
                continue
            if before is not None:
                self._forget(before)
                disconnected.append(before)

    def _ended(self, connection: Connection) -> None:
        """A connection was disconnected: log the reason once, if libzmq has ended it."""
        reason = self._reason(connection)
        failures = self.handshakes.ended(connection, reason)
        self._report(connection.address, failures)
        if reason is None and not failures:
            accepted = connection.peer is not None or connection.id <= self._newest_reply
            self._held.disconnected(connection, accepted=accepted)

    def _reason(self, connection: Connection) -> Failure | None:
        """Why the handshake of a disconnected connection failed, as far as it was reported."""
        if self._failure is Failure.LEFT and connection.spoke:
            return Failure.BROKEN_OFF
        return self._failure

    def _report(self, address: str, failures: list[Failure]) -> None:
        for failure in failures:
            self._handshake_failed(address, failure)

    def _has_received(self, connection: Connection) -> bool:
        counters = self._sockets.counters
        return counters is not None and counters.received(connection.descriptor) > 0

    def _forget(self, connection: Connection) -> None:
        self._held.release(connection)
        self._limits.leave(connection)
        self.guard.forget(connection)
        self.outbox.forget(connection)
        if connection.automatic:
            del self._automatic[connection.routing_id]  # type: ignore[arg-type]
        elif connection.routing_id is not None:
            self.own_routing_ids -= 1
            self.closed_routing_ids.closed(connection.routing_id)

    def _check_new(self, connection: Connection, hold: HeldConnection, *, spoke: bool) -> None:
        """Record a new connection's address, or close it if it would exceed a limit."""
        if not connection.disconnected:
            connection.address = hold.address
            connection.spoke = spoke
            reason: str | None
            if self._draining:
                reason = DRAINING
            elif connection.descriptor >= self._sockets.room:
                reason = OUT_OF_DESCRIPTORS
            else:
                reason = self._limits.enter(connection, connection.address)
            if reason is not None:
                self._refused(connection.address, reason)
                self._table.evicted(connection)
                self.handshakes.closed(connection)
                hold.shut_down()
        self._held.keep(connection, hold)

    def refuse_connections(self) -> None:
        """Refuse connections from now on.

        The system refuses them. Where it cannot, they are accepted and closed at once, as are those
        that the system has accepted and libzmq has not.
        """
        self.read_monitor()  # connections that libzmq has accepted may stay
        self._draining = True
        self._sockets.refuse_connections([*self._retired, *self._listeners])

    def replace_keys(self, keys: KeyPair) -> None:
        """Have other CURVE keys for the connections that are accepted from now on."""
        self.read_monitor()
        before, self._listeners = self._listeners, []
        try:
            self._sockets.replace_keys(keys, before)
        except BaseException:
            self._listeners = before
            raise
        self._retired += before

    def close(self) -> None:
        """Release all held connections."""
        self._held.close()

    def evict(self, connection: Connection, reason: str) -> None:
        """Close a connection. It counts as disconnected at once.

        Hold it, then read the monitor, then shut it down: if it is not disconnected by then, the
        descriptor that was duplicated was its own. So no other connection is shut down.
        """
        disconnected: list[Connection] = []
        hold = self._sockets.hold(connection.descriptor)
        self._read_events(disconnected)
        if not connection.disconnected:
            self._table.evicted(connection)
            self.handshakes.closed(connection)
            self._forget(connection)
            self.evicted += 1
            address = hold.address if hold is not None else "an unknown address"
            log.warning("evicted connection %d from %s: %s", connection.id, address, reason)
            if hold is not None:
                hold.shut_down()
            disconnected.append(connection)
        if hold is not None:
            hold.close()
        if disconnected:
            self._disconnected(disconnected)
        self.read_monitor()  # now that there is a descriptor to hold new connections, one by one

    def read_batch(self, room: int = BATCH) -> list[Message] | None:
        """Read a batch of messages, and then the monitor.

        Args:
            room: Bytes after which the batch ends.

        Returns:
            The messages of connections that are open or have just disconnected, which may be
            none; None if there was nothing to read.
        """
        self.outbox.retry()  # libzmq may have signalled that it accepts more
        receive_from = self._socket.receive_from
        known = self._automatic
        batch: list[Message] = []
        whole = room
        empty: list[Connection] = []  # whose pack has no message
        while room > 0:
            message = receive_from(known, PROPERTIES)
            if message is None:
                break
            routing_id, frames, origin = message
            number = len(frames)
            room -= MESSAGE * (number - 1 or 1) + len(routing_id)
            for frame in frames:
                room -= len(frame)
            if origin is None:
                connection = known[routing_id]
            else:
                sender = self._sender(routing_id, origin)
                if sender is None:
                    self.unattributed += packs.requests_untrusted(frames)
                    continue
                connection = sender
            if number == 1 and (pack := packs.unpack_untrusted(frames[0])) is not None:
                connection.max_pack_size, packed = pack
                room -= MESSAGE * len(packed)
                batch.extend([(connection, frames) for frames in packed])
                if not packed:
                    empty.append(connection)
            else:
                batch.append((connection, frames))
        if room == whole:
            return None
        self.weight += whole - room
        self.read_monitor()  # after the batch, before its requests are accepted (G3)
        if self.guard.watched:
            self.guard.heard([*empty, *[connection for connection, _ in batch]])
        return batch

    def _sender(self, routing_id: bytes, origin: Origin) -> Connection | None:
        """The connection of a message, by its descriptor and epoch; None if it is disconnected."""
        descriptor, properties = origin
        connection = self._table.sender(descriptor, int(properties[0]))
        if connection is not None and connection.peer is None:
            connection.peer = _peer(connection.id, properties)
            connection.routing_id = routing_id
            self._first_heard.append(connection)
            # libzmq makes its own of a zero byte and a number, and never reuses one.
            if len(routing_id) == AUTOMATIC_ID and routing_id.startswith(b"\0"):
                connection.automatic = True
                self._automatic[routing_id] = connection
            else:
                self.own_routing_ids += 1
                self.closed_routing_ids.heard(routing_id)
                if len(routing_id) > LONGEST_ID:  # libzmq copies it for each message
                    self.evict(connection, f"its routing id has {len(routing_id)} bytes")
                    return None
        return connection


def _peer(number: int, properties: tuple[str, ...]) -> Peer:
    """The sender of a message, by the properties of libzmq and the ZAP handler."""
    _epoch, address, socket_type, user_id, public_key = properties
    uid = pid = None
    if address.startswith("localhost:"):  # ipc: localhost:uid:gid:pid, on macOS without the pid
        uid, _gid, pid = (int(part) if part else None for part in address.split(":")[1:])
    return Peer(
        id=number,
        address=canonical(address),
        socket_type=socket_type,
        user_id=user_id,
        uid=uid,
        pid=pid,
        public_key=public_key,
    )
