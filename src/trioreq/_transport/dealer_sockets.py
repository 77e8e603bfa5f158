"""A DEALER and its monitor, which make one connection, and connecting to one of several addresses.

libzmq gets one numeric address, and connects once. The client decides what to do after the end of a
connection or an attempt: it may have to resolve a name again, or try another address.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Final

import trio
import zmq

from .._protocol.frame_sizes import on_wire
from .curve import CurveClient
from .handshake_events import EVENT
from .zsocket import ZSocket, open_monitor, set_heartbeat, terminate

HANDSHAKE = 15.0  # seconds; a server that postpones its decision sends nothing: try again
NEVER: Final = 3_600_000  # ms until libzmq connects again; the sockets are closed long before
NEXT_ADDRESS = 0.25  # seconds until the next address is tried in parallel (RFC 8305)
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | FAILED
)


@dataclass(frozen=True, slots=True, eq=False)
class DealerSockets:
    """A DEALER, as pyzmq has it and in trio, and its monitor.

    Attributes:
        endpoint: Its numeric endpoint.
    """

    endpoint: str
    raw: zmq.Socket[bytes]
    dealer: ZSocket
    monitor: ZSocket

    @trio.lowlevel.enable_ki_protection  # an interrupt must not lose an event that was read
    async def wait_accepted(self) -> bool:
        """Wait until the server accepts the connection; returns False if that fails."""
        while True:
            await readable(self.monitor)
            while (event := self.next_event()) is not None:
                if event[0] in (zmq.EVENT_CONNECTED, zmq.EVENT_CONNECT_RETRIED):
                    return event[0] == zmq.EVENT_CONNECTED

    def next_event(self) -> tuple[int, int] | None:
        """The next event of the monitor, and its value; None if there is none yet."""
        frames = self.monitor.receive()
        if frames is None:
            return None
        event, value = EVENT.unpack(frames[0])
        return event, value

    def close(self) -> None:
        """Close both."""
        self.raw.disable_monitor()
        self.monitor.close()
        trio.lowlevel.notify_closing(self.raw.fileno())  # wakes the task that reads
        self.dealer.close()


class Connecter:
    """Makes connections, one after the other, with one Context for their sockets.

    Args:
        heartbeat: Seconds after which a silent server is detected; None for no heartbeats.
        max_message_size: Bytes of the largest frame to receive.
        curve: The server's key and the client's own keys; None for no CURVE.
    """

    def __init__(
        self, *, heartbeat: float | None, max_message_size: int, curve: CurveClient | None
    ) -> None:
        self._heartbeat = heartbeat
        self._max_message_size = max_message_size
        self._curve = curve
        self._numbers = count(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)

    async def connect_first(self, endpoints: Sequence[str]) -> DealerSockets | None:
        """Connect to the first of some endpoints that accepts the connection.

        They are tried in order; the next one when the last has failed, or in parallel if that takes
        long (RFC 8305, Happy Eyeballs).

        Returns:
            The sockets of that connection; None if all have failed.

        Raises:
            zmq.ZMQError: All have failed, and for one of them no sockets could be opened, as
                without a free descriptor.
        """
        first: DealerSockets | None = None
        unopened: zmq.ZMQError | None = None

        @trio.lowlevel.enable_ki_protection  # with an open socket `aclose` would never end
        async def attempt(sockets: DealerSockets, ended: trio.Event) -> None:
            nonlocal first
            try:
                if await sockets.wait_accepted() and first is None:
                    first = sockets
                    nursery.cancel_scope.cancel()
            finally:
                if first is not sockets:
                    sockets.close()
                ended.set()

        try:
            async with trio.open_nursery() as nursery:
                for endpoint in endpoints:
                    try:
                        sockets = self.open(endpoint)
                    except zmq.ZMQError as error:
                        unopened = error
                        continue
                    ended = trio.Event()
                    nursery.start_soon(attempt, sockets, ended)
                    with trio.move_on_after(NEXT_ADDRESS):
                        await ended.wait()
        except BaseException:
            if first is not None:  # it connected in the moment of the cancel
                first.close()
            raise
        if first is None and unopened is not None:
            raise unopened
        return first

    @trio.lowlevel.enable_ki_protection
    def open(self, endpoint: str) -> DealerSockets:
        """Open the sockets, and begin to connect.

        Raises:
            zmq.ZMQError: That is not possible.
        """
        with ExitStack() as stack:
            dealer = stack.enter_context(self._context.socket(zmq.DEALER))
            dealer.linger = 0
            dealer.sndhwm = dealer.rcvhwm = 0  # bounded by the requests in flight
            encrypted = self._curve is not None
            dealer.maxmsgsize = on_wire(self._max_message_size, encrypted=encrypted)
            dealer.reconnect_ivl = NEVER
            dealer.handshake_ivl = round(HANDSHAKE * 1000)
            dealer.ipv6 = "]:" in endpoint
            if self._curve is not None:
                dealer.curve_serverkey = self._curve.server_key.encode()
                dealer.curve_publickey = self._curve.keys.public.encode()
                dealer.curve_secretkey = self._curve.keys.secret.encode()
            set_heartbeat(dealer, self._heartbeat)
            # A new name each time: libzmq frees one some time after its sockets are closed.
            address = f"inproc://trioreq.monitor.{next(self._numbers)}"
            dealer.monitor(address, WATCHED)
            monitor = stack.enter_context(open_monitor(self._context, address))
            sockets = DealerSockets(endpoint, dealer, ZSocket.of(dealer), ZSocket.of(monitor))
            dealer.connect(endpoint)
            stack.pop_all()
        return sockets

    async def aclose(self) -> None:
        """Terminate the context; all sockets must be closed."""
        await terminate(self._context)


async def readable(socket: ZSocket) -> None:
    """Wait until there may be a message; a checkpoint also if there is one already."""
    if socket.readable():
        await trio.lowlevel.checkpoint()
    else:
        await socket.wait()
