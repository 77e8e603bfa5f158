"""The transport on real sockets.

A ROUTER, its monitor and its gate, as connections that come, speak and go. All use of the
ROUTER is here, and nothing here waits for a client. `docs/design.md` has the rules that this
follows and the reasons for them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio
import zmq

from . import _endpoint
from ._errors import EndpointError
from ._gate import DOMAIN, STAMP, Gate
from ._presence import Presence
from ._transport import Peer, Sent
from ._zsocket import ZSocket

if TYPE_CHECKING:
    from ._transport import Host, Session

BATCH = 128  # messages read before trio's other tasks have their turn
CATCH_UP = 8  # batches read before newcomers are let in, at the most
BACKLOG = 4096  # connections that the kernel may hold for libzmq; it caps this itself
LINGER = 0.5  # seconds that the last words have to go out in
MONITOR = "inproc://trioreq.monitor"
EVENT = struct.Struct("=Hi")
MORE = zmq.SNDMORE | zmq.NOBLOCK


class RouterLink:
    """One connection to the ROUTER, from its first message on."""

    __slots__ = ("client", "gone", "router", "routing_id", "session")

    session: Session

    def __init__(self, router: Router, routing_id: bytes, client: Peer) -> None:
        self.router = router
        self.routing_id = routing_id
        self.client = client
        self.gone = False

    def send(self, frames: Sequence[bytes]) -> Sent:
        """Hand a message over, to this connection or to nobody; never waits."""
        if not is_automatic(self.routing_id):
            self.router.read_monitor()  # another connection may have the routing id by now
        return Sent.GONE if self.gone else self.router.send(self.routing_id, frames)


class Router:
    """A bound ROUTER socket.

    Args:
        addrs: Endpoints to bind, tcp and ipc.
        heartbeat: Seconds in which a silent peer is declared gone; None for no heartbeats.
        max_message_size: Bytes in a frame; a peer that sends more is disconnected.
        send_queue: Messages that one connection may have waiting to go out.

    Raises:
        EndpointError: An address cannot be bound.
    """

    def __init__(
        self,
        addrs: Sequence[str],
        *,
        heartbeat: float | None,
        max_message_size: int,
        send_queue: int,
    ) -> None:
        if not addrs:
            raise EndpointError(
                f"no address to serve: give at least one, such as {_endpoint.EXAMPLES}"
            )
        self._presence = Presence()
        self._links: dict[int, RouterLink] = {}
        self._automatic: dict[bytes, RouterLink] = {}  # routing id -> link, while it lives
        self._files: list[_endpoint.BoundFile] = []
        # One I/O thread: with more, libzmq does not promise the order that presence needs.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._router = ZSocket(self._open_router(heartbeat, max_message_size, send_queue))
            self._monitor = ZSocket(self._open_monitor())
            self._gate = Gate(self._context, self._catch_up)
            self._router.raw.ipv6 = any("[" in addr for addr in addrs)
            self.endpoints = tuple(self._bind(addr) for addr in addrs)
        except BaseException:
            self._remove_files()
            self._context.destroy(linger=0)
            raise

    @property
    def connections(self) -> int:
        """How many connections live, those that have not spoken included."""
        return len(self._presence)

    async def run(self, host: Host) -> None:
        """Carry, until cancelled."""
        self._host = host  # before the first message is read, and not needed earlier
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._monitor.keep_reading, self.read_monitor)
            nursery.start_soon(self._gate.socket.keep_reading, self._gate.answer)
            nursery.start_soon(self._router.keep_reading, self._read)

    def send(self, routing_id: bytes, frames: Sequence[bytes]) -> Sent:
        """Hand a message to the connection that has the routing id now."""
        send = self._router.raw.send
        *body, last = frames
        try:
            send(routing_id, MORE)
            for frame in body:
                send(frame, MORE)
            send(last, zmq.NOBLOCK)
        except zmq.Again:  # only ever at the first frame, as EHOSTUNREACH
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return Sent.GONE
        finally:
            self._router.nudge()  # a send that fails eats the edge too
        return Sent.OUT

    def read_monitor(self) -> int:
        """Take in who came and who went; returns the stamp of that."""
        monitor = self._monitor
        recv = monitor.raw.recv
        while monitor.readable():
            event, descriptor = EVENT.unpack(recv(zmq.NOBLOCK))
            recv(zmq.NOBLOCK)  # the endpoint, which nobody asks for
            if event == zmq.EVENT_ACCEPTED:
                number = self._presence.opened(descriptor)
            else:
                number = self._presence.ended(descriptor)
            link = self._links.pop(number, None) if number is not None else None
            if link is not None:
                link.gone = True
                self._automatic.pop(link.routing_id, None)
                link.session.left()
        return self._presence.stamp

    def _catch_up(self) -> int:
        """Take in all that was before now; returns the stamp of that.

        The ROUTER too: until it has been read dry, libzmq keeps the routing ids of those who
        went, and would ignore a newcomer under one of them, for good.
        """
        for _ in range(CATCH_UP):
            if not self._read():
                break
        self._router.nudge()
        return self.read_monitor()

    def _read(self) -> bool:
        """Read a batch, see who has gone since, then let the server have what came.

        Returns:
            Whether there may be more to read.
        """
        recv = self._router.raw.recv
        batch: list[tuple[Session | None, list[bytes]]] = []
        for _ in range(BATCH):
            try:
                routing_id = recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            # The second frame is read as a Frame, which knows whether more come, and from whom.
            frame = recv(zmq.NOBLOCK, copy=False)
            link = self._automatic.get(routing_id) or self._attribute(routing_id, frame)
            frames = [frame.bytes]
            while frame.more:
                frame = recv(zmq.NOBLOCK, copy=False)
                frames.append(frame.bytes)
            batch.append((link.session if link else None, frames))
        if not batch:
            return False
        self.read_monitor()
        for session, frames in batch:
            if session is None:
                self._host.unattributed()
            else:
                session.arrived(frames)
        return len(batch) == BATCH

    def _attribute(self, routing_id: bytes, frame: zmq.Frame) -> RouterLink | None:
        """Find or make the link of a message, by its descriptor and stamp."""
        descriptor: int = frame.get(zmq.SRCFD)
        number = self._presence.sender(descriptor, int(frame.get(STAMP)))
        if number is None:
            return None
        link = self._links.get(number)
        if link is None:
            link = RouterLink(self, routing_id, _peer(number, frame))
            link.session = self._host.joined(link)
            self._links[number] = link
            if is_automatic(routing_id):
                self._automatic[routing_id] = link
        return link

    def _open_router(
        self, heartbeat: float | None, max_message_size: int, send_queue: int
    ) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.zap_domain = DOMAIN
        router.router_mandatory = True
        router.sndhwm = send_queue
        router.maxmsgsize = max_message_size
        router.backlog = BACKLOG
        if heartbeat is not None:
            # Who stops right after a PONG is sent the next PING after one half of the time,
            # and has failed to answer it after the other.
            router.heartbeat_ivl = router.heartbeat_timeout = max(1, round(heartbeat * 500))
        router.monitor(MONITOR, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        return router

    def _open_monitor(self) -> zmq.Socket[bytes]:
        monitor = self._context.socket(zmq.PAIR)
        monitor.rcvhwm = 0  # a full monitor would stop libzmq's I/O thread
        monitor.linger = 0
        monitor.connect(MONITOR)
        return monitor

    def _bind(self, addr: str) -> str:
        path = _endpoint.check(addr)
        try:
            self._router.raw.bind(addr)
        except zmq.ZMQError as error:
            raise EndpointError(_endpoint.explain(addr, error.errno)) from error
        if path is not None:
            self._files.append(_endpoint.BoundFile(path))
        bound: bytes = self._router.raw.get(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return bound.decode().rstrip("\0")

    async def aclose(self) -> None:
        """Let what was handed over go out, for a bounded time, and close."""
        self._remove_files()
        self._gate.close()
        self._router.raw.disable_monitor()
        self._monitor.raw.close()
        self._router.raw.close(linger=round(LINGER * 1000))
        with trio.CancelScope(shield=True):  # bounded by the linger
            await trio.to_thread.run_sync(self._context.term)

    def _remove_files(self) -> None:
        for file in self._files:
            file.remove()


def is_automatic(routing_id: bytes) -> bool:
    """Whether libzmq made the routing id: such a one is never used again."""
    return routing_id[:1] == b"\0"


def _property(frame: zmq.Frame, name: str) -> str:
    """A text that libzmq keeps beside a message; empty if the peer has not given it."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def _peer(number: int, frame: zmq.Frame) -> Peer:
    """What libzmq and the gate know of a message's sender."""
    address = _property(frame, "Peer-Address")
    uid = pid = None
    if address.startswith("localhost:"):  # ipc: localhost:uid:gid:pid
        uid, _gid, pid = (int(part) for part in address.split(":")[1:])
    return Peer(
        id=number,
        address=address,
        socket_type=_property(frame, "Socket-Type"),
        user_id=_property(frame, "User-Id"),
        uid=uid,
        pid=pid,
    )
