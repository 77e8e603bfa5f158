"""The client's line on real sockets: a DEALER and its monitor.

libzmq tries until it has a connection. When that is lost, the sockets are closed with it and new
ones are opened: so what libzmq still had in a queue is never sent later than the client knows, and
every reply that came before the end is read. (libzmq's own way to the first, ZMQ_IMMEDIATE, loses
the second.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import trio
import zmq

from .._errors import EndpointError
from .._protocol import packs
from .._protocol.envelope import Frames
from .._protocol.frame_sizes import on_wire
from . import endpoints
from .curve import CurveClient
from .heartbeats import heartbeat_times
from .line import Accepted, Event, HandshakeFailed, HandshakeSucceeded, Lost
from .zsocket import ZSocket, terminate

BATCH = 128  # messages read before trio's other tasks have their turn
RECONNECT = 0.05  # seconds before the first try to connect again; each further one doubles it
RECONNECT_MOST = 2.0
EVENT = struct.Struct("=Hi")
HANDSHAKE = 15.0  # seconds; a server that cannot decide now says nothing, and is asked again
FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
WATCHED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | FAILED
WRONG_KEY = 3  # connections in a row that are closed in CURVE's handshake: a key is wrong


@dataclass(frozen=True, slots=True)
class _Sockets:
    """A DEALER, as pyzmq has it and in trio, and its monitor."""

    raw: zmq.Socket[bytes]
    dealer: ZSocket
    monitor: ZSocket

    def close(self) -> None:
        if not self.raw.closed:
            self.raw.disable_monitor()
            self.monitor.close()
            trio.lowlevel.notify_closing(self.raw.fileno())  # wakes `receive`
            self.dealer.close()


class Dealer:
    """A DEALER socket that is connected to one endpoint, or tries to be; a `Line`.

    Args:
        endpoint: The server's address.
        heartbeat: Seconds in which a silent server is noticed; None for no heartbeats.
        max_message_size: Bytes that a frame may have that is received.
        curve: The server's key and the client's own; None for no CURVE.

    Raises:
        EndpointError: The endpoint is not an address that can be connected to.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        heartbeat: float | None,
        max_message_size: int,
        curve: CurveClient | None = None,
    ) -> None:
        endpoints.check_client(endpoint)
        self._endpoint = endpoint
        self._heartbeat = heartbeat
        self._max_message_size = max_message_size
        self._max_pack_size = packs.max_size(max_message_size)
        self._curve = curve
        self._opened = 0
        self._connected = False
        self._failures = 0  # of handshakes, in a row, without a reason
        self._end: Lost | HandshakeFailed | None = None  # what ended the use of the sockets
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._sockets = self._open()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise EndpointError(
                f"cannot connect to {endpoint!r}: {endpoints.reason(error.errno)}"
            ) from error

    @property
    def max_pack_size(self) -> int:
        """As in `Line`, like all that follow."""
        return self._max_pack_size

    @trio.lowlevel.enable_ki_protection  # an event that is read and not returned is lost
    async def events(self) -> list[Event]:
        if self._end is not None:
            await self._reopen()
        while True:
            await _readable(self._sockets.monitor)
            if events := self._read_monitor():
                return events

    @trio.lowlevel.enable_ki_protection  # the rest of a message would begin the next one
    async def receive(self) -> list[list[bytes]]:
        while True:
            await _readable(self._sockets.dealer)
            if messages := self._read():
                return messages

    @trio.lowlevel.enable_ki_protection  # half a message would begin the next one
    def send(self, messages: Sequence[Frames]) -> None:
        dealer = self._sockets.dealer
        for frames in messages:
            if dealer.send(frames):
                break  # there is no connection any more: the monitor tells it next
        dealer.nudge()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        self._sockets.close()
        await terminate(self._context)

    @trio.lowlevel.enable_ki_protection  # a socket that is left open holds `aclose` up for ever
    def _open(self) -> _Sockets:
        """Open the sockets, and begin to connect."""
        with ExitStack() as stack:
            dealer = stack.enter_context(self._context.socket(zmq.DEALER))
            dealer.linger = 0
            dealer.sndhwm = dealer.rcvhwm = 0  # bounded by the requests that wait for a reply
            encrypted = self._curve is not None
            dealer.maxmsgsize = on_wire(self._max_message_size, encrypted=encrypted)
            dealer.reconnect_ivl = round(RECONNECT * 1000)
            dealer.reconnect_ivl_max = round(RECONNECT_MOST * 1000)
            dealer.handshake_ivl = round(HANDSHAKE * 1000)
            dealer.ipv6 = "[" in self._endpoint
            if self._curve is not None:
                dealer.curve_serverkey = self._curve.server_key.encode()
                dealer.curve_publickey = self._curve.keys.public.encode()
                dealer.curve_secretkey = self._curve.keys.secret.encode()
            if self._heartbeat is not None:
                interval, timeout = heartbeat_times(self._heartbeat)
                dealer.heartbeat_ivl = max(1, round(interval * 1000))
                dealer.heartbeat_timeout = max(1, round(timeout * 1000))
            self._opened += 1
            address = f"inproc://trioreq.monitor.{self._opened}"  # the last may not be free yet
            dealer.monitor(address, WATCHED)
            monitor = stack.enter_context(self._context.socket(zmq.PAIR))
            monitor.rcvhwm = 0
            monitor.linger = 0
            monitor.connect(address)
            sockets = _Sockets(dealer, ZSocket.of(dealer), ZSocket.of(monitor))
            dealer.connect(self._endpoint)
            stack.pop_all()
        return sockets

    async def _reopen(self) -> None:
        """Close the sockets whose use has ended, and open new ones."""
        if isinstance(self._end, HandshakeFailed):
            await trio.sleep(RECONNECT_MOST)
        self._sockets.close()
        self._sockets = self._open()
        self._end = None
        await trio.sleep(RECONNECT)  # a server that lets in and throws out is not stormed

    def _read(self) -> list[list[bytes]]:
        """Read a batch."""
        receive = self._sockets.dealer.receive
        messages: list[list[bytes]] = []
        while len(messages) < BATCH and (frames := receive()) is not None:
            messages.append(frames)
        return messages

    def _read_monitor(self) -> list[Event]:
        """Read what has happened, up to what ends the use of the sockets.

        libzmq may have connected them again by then; that connection ends with them.
        """
        events: list[Event] = []
        while self._end is None and (told := self._sockets.monitor.receive()) is not None:
            event, value = EVENT.unpack(told[0])
            if event == zmq.EVENT_CONNECTED:
                events.append(Accepted())
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                self._failures = 0
                events.append(HandshakeSucceeded())
            elif event & FAILED and not self._connected:  # else the connection ends next
                events.append(self._fail_handshake(event, value))
            elif event == zmq.EVENT_DISCONNECTED and self._connected:
                events.append(self._lose())
        return events

    def _lose(self) -> Lost:
        """The connection is gone; what came before the end counts."""
        self._connected = False
        unread: list[list[bytes]] = []
        while messages := self._read():
            unread += messages
        self._end = Lost(unread)
        return self._end

    def _fail_handshake(self, event: int, value: int) -> HandshakeFailed:
        """A handshake has failed; one with a reason ends the use of the sockets."""
        self._failures += 1
        failed = HandshakeFailed(self._reason(event, value))
        if failed.reason is not None:
            self._failures = 0
            self._end = failed
        return failed

    def _reason(self, event: int, value: int) -> str | None:
        """Why a handshake has failed; libzmq tells little of it."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            reason = f"the server does not let this client in (status {value})"
            if self._curve is not None:
                reason += f": is its key {self._curve.keys.public} on the server's list?"
            return reason
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            if self._curve is None:
                return "the server wants a client to prove who it is, by CURVE or PLAIN"
            return "the server does not speak CURVE"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "what it says in the handshake is not understood: is it a ZeroMQ server?"
        if self._curve is not None and self._failures >= WRONG_KEY:
            return (
                "the server closes the connection in the handshake and does not say why: "
                "is the server's key right? Does it speak CURVE? Is it full?"
            )
        return None


async def _readable(socket: ZSocket) -> None:
    """Wait until there may be a message; a checkpoint also if there is one already."""
    if socket.readable():
        await trio.lowlevel.checkpoint()
    else:
        await socket.wait()
