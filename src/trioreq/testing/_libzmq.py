"""A model of libzmq as the server uses it: a ROUTER, its monitor and ZAP socket, in memory.

It has the properties that the server assumes (docs/design.md has the list): separate queues for
messages and events, descriptors that are reused at once, messages that are delivered after the
disconnect, routing ids that are in use, full send queues, and a descriptor that signals once,
unless another call on the socket has consumed the signal.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from errno import EAGAIN, EHOSTUNREACH, EPIPE

import trio
import zmq

from .._protocol import frame_sizes
from .._server.deadlines import Timer
from .._transport.curve_keys import KeyPair
from .._transport.handshake_events import EVENT
from .._transport.linux import KernelCounters, Signs
from .._transport.messages import Known, Names, Received
from .._transport.server_sockets import HANDSHAKE
from .._transport.zsocket import ZSocket
from ._ways import Timers, Watch, Way

LOWEST = 10  # lowest descriptor of a connection
READY: list[bytes] = []  # stands for the client's last command of the handshake
END = None  # the end of the stream
Item = list[bytes] | None


class MemorySocket:
    """A queue of messages."""

    def __init__(self) -> None:
        self._messages: deque[list[bytes]] = deque()
        self._edge = False
        self._woken = False
        self._happened = trio.Event()

    def put(self, frames: Sequence[bytes]) -> None:
        """Add a message."""
        self._messages.append(list(frames))
        self.happened()

    def happened(self) -> None:
        """Signal that something has happened."""
        self._edge = True
        self._happened.set()

    async def wait(self) -> None:
        """Wait until something has happened since the last call, or `wake`."""
        await trio.lowlevel.checkpoint()
        while not (self._edge or self._woken):
            self._happened = trio.Event()
            await self._happened.wait()
        self._woken = False

    def wake(self) -> None:
        """End the wait. Unlike an edge, this is not consumed by another call on the socket."""
        self._woken = True
        self._happened.set()

    def receive(self) -> list[bytes] | None:
        """As in `Messages`, like the next methods."""
        self._edge = False
        return self._messages.popleft() if self._messages else None

    def receive_from(self, known: Known, names: Names, /) -> Received | None:
        raise NotImplementedError  # only a ROUTER has it

    def send(self, frames: Sequence[bytes], /) -> int:
        raise NotImplementedError  # these sockets only receive

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        raise NotImplementedError

    def readable(self) -> bool:
        self._edge = False
        return self.waiting()

    def waiting(self) -> bool:
        """Whether there is a message; unlike `readable`, it does not consume the edge."""
        return bool(self._messages)

    def close(self) -> None:
        """Do nothing: it has no resources."""


class ZapSocket(MemorySocket):
    """ZAP requests, and a callback for each reply."""

    def __init__(self) -> None:
        super().__init__()
        self._requested: dict[bytes, Callable[[list[bytes]], None]] = {}
        self._number = 0

    def request(self, content: Sequence[bytes], replied: Callable[[list[bytes]], None]) -> None:
        """Put a request: domain, address, routing id, mechanism and credentials."""
        self._number += 1
        request_id = b"%d" % self._number
        self._requested[request_id] = replied
        self.put([b"session", b"", b"1.0", request_id, *content])

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """Take a reply."""
        self._edge = False
        _empty, _version, request_id, *reply = frames
        self._requested.pop(request_id)(reply)
        return 0


class RouterSocket(MemorySocket):
    """A ROUTER with ROUTER_MANDATORY.

    Attributes:
        refused: All messages that had no connection.
    """

    def __init__(self, send_queue: int) -> None:
        super().__init__()
        self.refused: list[tuple[bytes, ...]] = []
        self._send_queue = send_queue
        self._table: dict[bytes, Connection] = {}
        self._turns: deque[Connection] = deque()  # connections with messages to read
        self._automatic = 0x6B8B4567

    def attach(self, connection: Connection) -> None:
        """Deliver messages of a connection, unless its routing id is in use: then never (A9)."""
        self._automatic += 1
        routing_id = connection.wanted or b"\0" + self._automatic.to_bytes(4, "big")
        if routing_id not in self._table:
            self._table[routing_id] = connection
            connection.routing_id = routing_id

    def arrived(self, connection: Connection, frames: list[bytes]) -> None:
        """A message has arrived on a connection."""
        if connection.routing_id is None:
            return
        if connection.unflushed is not None:
            connection.unflushed.append(frames)
            return
        if not connection.unread:
            self._turns.append(connection)
        connection.unread.append(frames)
        self.happened()

    def ended(self, connection: Connection) -> None:
        """A connection has closed. Its routing id is in use until all its messages were read."""
        if not connection.unread and not connection.unflushed:
            self._release(connection)
        self.happened()

    def receive_from(self, known: Known, names: Names, /) -> Received | None:
        """The next message. Connections take turns."""
        self._edge = False
        if not self._turns:
            return None
        connection = self._turns.popleft()
        frames = connection.unread.popleft()
        if connection.unread:
            self._turns.append(connection)
        elif connection.ended and not connection.unflushed:
            self._release(connection)
        routing_id = connection.routing_id
        assert routing_id is not None  # noqa: S101  # otherwise it is ignored
        if routing_id in known:
            return routing_id, frames, None
        properties = tuple(connection.properties.get(name, "") for name in names)
        return routing_id, frames, (connection.descriptor, properties)

    def send_to(self, routing_id: bytes, frames: Sequence[bytes], /) -> int:
        """Hand a message to the connection that has the routing id."""
        self._edge = False
        connection = self._table.get(routing_id)
        if connection is None or connection.ended:
            self.refused.append(tuple(frames))
            return EHOSTUNREACH
        if connection.to_client.blocked and len(connection.held) >= self._send_queue:
            connection.full = True
            return EAGAIN
        connection.hand_over(list(frames))
        return 0

    def waiting(self) -> bool:
        """As in `MemorySocket`."""
        return bool(self._turns)

    def _release(self, connection: Connection) -> None:
        if connection.routing_id is not None:
            del self._table[connection.routing_id]


class MemorySockets:
    """The sockets of a server that is bound to a network in memory."""

    endpoints: tuple[str, ...] = ("memory",)
    room: int = sys.maxsize
    counters: KernelCounters | None = None  # no checks at intervals, so that time can jump

    def __init__(
        self,
        timers: Timers,
        *,
        heartbeat: float | None,
        max_message_size: int,
        send_queue: int,
        closed: Callable[[], None],
    ) -> None:
        self.timers: Timers = timers
        self.heartbeat: float | None = heartbeat
        self.max_message_size: int = max_message_size
        self.send_queue: int = send_queue
        self.draining: bool = False
        self._closed = closed
        self._connections: dict[int, Connection] = {}  # by descriptor
        self.raw_router: RouterSocket = RouterSocket(send_queue)
        self.raw_monitor: MemorySocket = MemorySocket()
        self.raw_zap: ZapSocket = ZapSocket()
        self.router: ZSocket = ZSocket(self.raw_router, self.raw_router)
        self.monitor: ZSocket = ZSocket(self.raw_monitor, self.raw_monitor)
        self.zap: ZSocket = ZSocket(self.raw_zap, self.raw_zap)

    def free_descriptor(self, wanted: int | None) -> int:
        """The wanted one, or the lowest free one, as the kernel assigns them."""
        if wanted is not None:
            if wanted in self._connections:
                raise ValueError(
                    f"descriptor {wanted} is in use: its client has not disconnected yet"
                )
            return wanted
        descriptor = LOWEST
        while descriptor in self._connections:
            descriptor += 1
        return descriptor

    def accept(self, connection: Connection) -> None:
        """A client has connected: put the event, and then the ZAP request."""
        self._connections[connection.descriptor] = connection
        self._put_event(zmq.EVENT_ACCEPTED, connection)
        request = [b"trioreq", connection.address.encode(), b"", b"NULL"]
        self.raw_zap.request(request, connection.answered)

    def handshake_ended(self, event: int, connection: Connection, value: int = 0) -> None:
        """Put the event for the end of a connection's handshake."""
        self._put_event(event, connection, value)

    def ended(self, connection: Connection) -> None:
        """A connection has closed: put the event, and then free its descriptor."""
        self._put_event(zmq.EVENT_DISCONNECTED, connection)
        del self._connections[connection.descriptor]
        self.raw_router.ended(connection)

    def hold(self, descriptor: int) -> HeldConnection | None:
        """Hold the connection that has a descriptor now."""
        connection = self._connections.get(descriptor)
        return None if connection is None else HeldConnection(connection)

    def refuse_connections(self, _: Sequence[int]) -> None:
        """Refuse new connections."""
        self.draining = True

    def replace_keys(self, keys: KeyPair, listeners: Sequence[int]) -> None:
        """There is no CURVE."""
        raise RuntimeError("there are no keys to replace: the server was started without curve")

    async def aclose(self) -> None:
        """End all connections."""
        for connection in tuple(self._connections.values()):
            connection.end_at_server()
        self._closed()
        await trio.lowlevel.cancel_shielded_checkpoint()  # as on real sockets

    def _put_event(self, event: int, connection: Connection, value: int | None = None) -> None:
        """Put an event. Its value is the connection's descriptor by default."""
        value = connection.descriptor if value is None else value
        self.raw_monitor.put([EVENT.pack(event, value), b"memory"])


class HeldConnection:
    """A connection that can be shut down."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.address: str = connection.address
        self.descriptor: int = connection.descriptor

    def signs(self) -> Signs:
        """How it has ended."""
        return Signs(peer_ended=not self._connection.cut_off, handshake=True, silent=False)

    def shut_down(self) -> None:
        """End it."""
        self._connection.end_at_server("the server has shut the connection down")

    def close(self) -> None:
        """Release it."""


class Peer:
    """The client's end of a connection."""

    def up(self) -> None:
        """The ZAP handler has accepted the client."""

    def refused(self, why: str) -> None:
        """The ZAP handler has refused the client."""

    def heard(self, frames: list[bytes]) -> None:
        """A message has arrived."""

    def down(self, reason: str) -> None:
        """The other side has ended the connection."""


class Connection:
    """One connection, from end to end.

    Attributes:
        sent: All messages that were handed to libzmq for it.
        unread: Its messages that libzmq has, and that the server has not read.
        unflushed: Messages that libzmq's I/O thread has read and not delivered yet; None if it
            delivers them at once.
        routing_id: The one that the ROUTER uses; None before the ZAP reply, and if the wanted one
            is in use.
        through: Whether its handshake was completed.
        ended: Whether it has closed, for libzmq at the server.
        cut_off: Whether libzmq has closed it because of a frame that was too large.
        full: Whether a message was not accepted since the last one was sent.
    """

    def __init__(
        self,
        sockets: MemorySockets,
        peer: Peer,
        *,
        descriptor: int,
        socket_type: str,
        wanted: bytes | None = None,
        user_id: str | None = None,
        heartbeat: float | None = None,
        max_message_size: int | None = None,
    ) -> None:
        self._sockets = sockets
        self._peer = peer
        self.descriptor: int = descriptor
        self.address: str = "127.0.0.1"
        self.wanted: bytes | None = wanted
        self._max_at_client = max_message_size
        self.properties: dict[str, str] = {
            "Peer-Address": self.address,
            "Socket-Type": socket_type,
        }
        if user_id is not None:
            self.properties["User-Id"] = user_id
        self.routing_id: bytes | None = None
        self.ended: bool = False
        self.cut_off: bool = False
        self.full: bool = False
        self.sent: list[list[bytes]] = []
        self.unread: deque[list[bytes]] = deque()
        self.unflushed: list[list[bytes]] | None = None
        self._admitted = self._refused = False
        self.through: bool = False
        self.to_server: Way[Item] = Way(sockets.timers, self._at_server)
        self.to_client: Way[Item] = Way(sockets.timers, self._at_client)
        self.to_server.block("handshake")
        self.to_server.put(READY)
        self._watches = [
            Watch(sockets.timers, sockets.heartbeat, self.end_at_server),
            Watch(sockets.timers, heartbeat, self._miss_server),
        ]
        due = trio.current_time() + HANDSHAKE
        self._handshake: Timer[Callable[[], None]] = sockets.timers.add(due, self._time_out)

    @property
    def held(self) -> list[list[bytes]]:
        """The messages that were handed to libzmq, and have not left the server."""
        return [item for item in self.to_client.held if item is not None]

    def answered(self, answer: Sequence[bytes]) -> None:
        """The ZAP handler has replied: code, text, user id and metadata."""
        if self.ended:
            return
        code, text, user_id, metadata = answer
        if code != b"200":
            why = f"the server refused the client: {code.decode()} {text.decode()}"
            self._sockets.handshake_ended(zmq.EVENT_HANDSHAKE_FAILED_AUTH, self, int(code))
            self._refused = True
            self._peer.refused(why)
            self.end_at_server(why)
            return
        self.properties |= parse_metadata(metadata)
        if user_id:
            self.properties["User-Id"] = user_id.decode()
        self._admitted = True
        self._peer.up()
        self.to_server.clear("handshake")

    def hand_over(self, frames: list[bytes]) -> None:
        """The server sends."""
        self.sent.append(frames)
        self.to_client.put(frames)

    def hang_up(self) -> None:
        """The client's process has closed the connection, or has died."""
        self.to_client.forget()
        self.to_client.block("closed")
        self.to_server.clear("handshake")
        self.to_server.put(END)

    def keep_unflushed(self) -> None:
        """Make libzmq read from now on without delivering messages.

        It does so for an instant if messages and the end of the connection arrive in one segment:
        the monitor reports the end before the ROUTER has the messages.
        """
        if self.unflushed is None:
            self.unflushed = []

    def flush(self) -> None:
        """Make it deliver what it has read."""
        unflushed, self.unflushed = self.unflushed, None
        for frames in unflushed or ():
            self._sockets.raw_router.arrived(self, frames)

    def silence(self) -> None:
        """Neither side answers the other's heartbeats, from now on."""
        for watch in self._watches:
            watch.silent()

    def hear_again(self) -> None:
        """Both sides answer heartbeats again."""
        for watch in self._watches:
            watch.heard()

    def end_at_server(
        self, reason: str = "the server has ended the connection", error: int = EPIPE
    ) -> None:
        """Close it for the server; the client detects it when the end arrives.

        Args:
            reason: The reason that the client gets.
            error: The errno that libzmq reports if this is during the handshake.
        """
        if self.ended:
            return
        if not (self.through or self._refused or self.cut_off):
            self._sockets.handshake_ended(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, self, error)
        self.ended = True
        self._reason = reason
        self._sockets.timers.forget(self._handshake)
        self._watches[0].heard()
        if self.to_client.blocked:
            self.to_client.forget()  # the messages have not left the server, and are freed
        self.to_client.put(END)
        self._sockets.ended(self)

    def _time_out(self) -> None:
        self.end_at_server("the handshake was not completed in time", error=EAGAIN)

    def _miss_server(self) -> None:
        self._break_at_client("the server is silent")

    def _break_at_client(self, reason: str) -> None:
        """The client's socket ends the connection by itself."""
        self._watches[1].heard()
        self.to_client.block("closed")
        self._peer.down(reason)
        self.to_server.put(END)

    def _at_server(self, item: Item) -> None:
        if self.ended:
            return
        if item is END:
            self.end_at_server()
        elif item is READY:
            size = frame_sizes.ready(self.properties["Socket-Type"], self.wanted or b"")
            if size > self._sockets.max_message_size:
                self.cut_off = True
                self.end_at_server("its routing id is too long for max_message_size")
            elif self._admitted:
                self.through = True
                self._sockets.timers.forget(self._handshake)
                self._sockets.raw_router.attach(self)
                self._sockets.handshake_ended(zmq.EVENT_HANDSHAKE_SUCCEEDED, self)
        elif is_too_large(item, self._sockets.max_message_size):
            self.cut_off = True
            self.end_at_server("a frame was larger than max_message_size")
        else:
            self._sockets.raw_router.arrived(self, item)

    def _at_client(self, item: Item) -> None:
        if self.full:
            self.full = False
            self._sockets.raw_router.happened()
        if item is END:
            self._watches[1].heard()
            self._peer.down(self._reason)
        elif is_too_large(item, self._max_at_client):
            self._break_at_client("a frame was larger than the client accepts")
        else:
            self._peer.heard(item)


def is_too_large(frames: Sequence[bytes], most: int | None) -> bool:
    """Whether libzmq would close the connection because of this message."""
    return most is not None and any(len(frame) > most for frame in frames)


def parse_metadata(metadata: bytes) -> dict[str, str]:
    """The properties in a ZAP reply, encoded as ZMTP's metadata."""
    properties: dict[str, str] = {}
    while metadata:
        name, rest = metadata[1 : 1 + metadata[0]], metadata[1 + metadata[0] :]
        size = int.from_bytes(rest[:4], "big")
        properties[name.decode()] = rest[4 : 4 + size].decode()
        metadata = rest[4 + size :]
    return properties
