"""The client's line on real sockets: a new DEALER and monitor for each connection.

When a connection is lost, its sockets are closed and new ones are opened. So a request that libzmq
still queued is never sent after the client has reported it as lost, and all replies that arrived
before the end are read. (libzmq's ZMQ_IMMEDIATE does the former, and loses the latter.) And a host
name is resolved again for each attempt to connect.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import trio
import zmq

from .._protocol import packs
from .._protocol.envelope import Frames
from . import endpoints
from .curve import CurveClient
from .dealer_sockets import FAILED, Connecter, DealerSockets, readable
from .line import (
    NO_SERVER,
    Accepted,
    Event,
    HandshakeFailed,
    HandshakeSucceeded,
    Lost,
    NoConnection,
)
from .names import LookupFailed, look_up

BATCH = 128  # messages to read before other tasks run
RECONNECT = 0.05  # seconds before the client connects again; doubled for each further attempt
RECONNECT_MOST = 2.0
NO_ANSWER = 5.0  # seconds until a name is resolved again, if none of its addresses answers
WRONG_KEY = 3  # connections in a row closed in CURVE's handshake that show a wrong key


class Dealer:
    """A DEALER socket that is connected to one endpoint, or tries to be; a `Line`.

    Args:
        endpoint: The server's address.
        heartbeat: Seconds after which a silent server is detected; None for no heartbeats.
        max_message_size: Bytes of the largest frame to receive.
        curve: The server's key and the client's own keys; None for no CURVE.

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
        self._host = endpoints.check_client(endpoint)
        self._endpoint = endpoint
        self._max_pack_size = packs.max_size(max_message_size)
        self._curve = curve
        self._connecter = Connecter(
            heartbeat=heartbeat, max_message_size=max_message_size, curve=curve
        )
        self._start()

    def _start(self) -> None:
        """Begin without a connection."""
        self._sockets: DealerSockets | None = None  # of the connection, once it is accepted
        self._opened = trio.lowlevel.ParkingLot()  # `receive` waits for them
        self._connected = False  # the handshake has succeeded
        self._failures = 0  # of handshakes, in a row
        self._failed = ""  # the numeric endpoint of the last one; others are tried first
        self._pause = 0.0  # seconds before the next attempt to connect
        self._events: list[Event] = []
        self._begin()

    @property
    def max_pack_size(self) -> int:
        """As in `Line`, like all other methods."""
        return self._max_pack_size

    @trio.lowlevel.enable_ki_protection  # an interrupt must not lose an event that was read
    async def events(self) -> list[Event]:
        while not self._events:
            if self._sockets is None:
                await self._connect()
            else:
                await readable(self._sockets.monitor)
                self._read_monitor()
        events, self._events = self._events, []
        return events

    @trio.lowlevel.enable_ki_protection  # an interrupt must not lose a message that was read
    async def receive(self) -> list[list[bytes]]:
        while True:
            if self._sockets is None:
                await self._opened.park()
            else:
                await readable(self._sockets.dealer)
                if messages := self._read():
                    return messages

    @trio.lowlevel.enable_ki_protection  # an interrupt must not leave half a message
    def send(self, messages: Sequence[Frames]) -> None:
        if self._sockets is None:
            return
        dealer = self._sockets.dealer
        for frames in messages:
            if dealer.send(frames):
                break  # the connection was lost: the monitor reports it next
        dealer.nudge()

    def successor(self) -> Dealer:
        other = copy(self)
        other._start()  # noqa: SLF001  # its own class
        return other

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
        self._connected = False

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        self.close()
        await self._connecter.aclose()

    def _begin(self) -> None:
        """Prepare for the first attempt to connect."""
        if self._host is not None and not self._host.is_numeric():
            hint = f"the name {self._host.name!r} is being looked up: does the name server answer?"
            self._events.append(NoConnection(hint))

    async def _connect(self) -> None:
        """Try to connect once, to each address."""
        await trio.sleep(self._pause)
        self._pause = min(max(2 * self._pause, RECONNECT), RECONNECT_MOST)
        try:
            addresses = [self._endpoint] if self._host is None else await look_up(self._host)
        except LookupFailed as error:
            self._events.append(NoConnection(str(error)))
            return
        addresses.sort(key=lambda address: address == self._failed)
        sockets = None
        try:
            with trio.move_on_after(NO_ANSWER) as answer:
                sockets = await self._connecter.connect_first(addresses)
        except zmq.ZMQError as error:
            self._events.append(NoConnection(f"no socket can be opened: {error.strerror}"))
            return
        if sockets is not None:
            self._sockets = sockets
            self._opened.unpark_all()
            self._events.append(Accepted())
            return
        hint = NO_SERVER
        if answer.cancelled_caught:
            hint = "nothing answers: is the address right? Does a firewall drop the packets?"
        if addresses != [self._endpoint]:
            hint = f"tried {', '.join(addresses)}: {hint}"
        self._events.append(NoConnection(hint))

    def _read(self) -> list[list[bytes]]:
        """Read a batch."""
        messages: list[list[bytes]] = []
        if self._sockets is not None:
            receive = self._sockets.dealer.receive
            while len(messages) < BATCH and (frames := receive()) is not None:
                messages.append(frames)
        return messages

    def _read_monitor(self) -> None:
        """Read the events, up to the end of the connection."""
        while self._sockets is not None and (found := self._sockets.next_event()) is not None:
            event, value = found
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
                self._failures = 0
                self._failed = ""
                self._events.append(HandshakeSucceeded())
            elif event == zmq.EVENT_DISCONNECTED and self._connected:
                self._lose()
            elif event & (FAILED | zmq.EVENT_DISCONNECTED) and not self._connected:
                self._fail_handshake(event, value)

    def _lose(self) -> None:
        """The connection was lost. Messages that arrived before are still returned."""
        unread: list[list[bytes]] = []
        while messages := self._read():
            unread += messages
        self.close()
        self._pause = RECONNECT  # for a server that accepts and closes each connection
        self._events.append(Lost(unread))
        self._begin()

    def _fail_handshake(self, event: int, value: int) -> None:
        """The handshake has failed."""
        if self._sockets is not None:
            self._failed = self._sockets.endpoint
        self._failures += 1
        reason = self._reason(event, value)
        if reason is not None:
            self._failures = 0
            self._pause = RECONNECT_MOST
        self.close()
        self._events.append(HandshakeFailed(reason))

    def _reason(self, event: int, value: int) -> str | None:
        """Why a handshake has failed, as far as libzmq reports it."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            reason = f"the server refuses this client (status {value})"
            if self._curve is not None:
                reason += f": is its key {self._curve.keys.public} on the server's allow-list?"
            return reason
        if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            if self._curve is None:
                return "the server requires authentication, by CURVE or PLAIN"
            return "the server does not speak CURVE"
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return "the handshake is malformed: is it a ZeroMQ server?"
        if self._curve is not None and self._failures >= WRONG_KEY:
            return (
                "the server closes the connection in the handshake, without a reason: "
                "is the server's key right? Does it speak CURVE? Is it full?"
            )
        return None
