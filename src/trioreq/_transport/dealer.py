"""The client's transport on real sockets: a DEALER and its monitor.

It tells of a connection that comes and goes, and of the replies on it. libzmq tries until it has
a connection. When that is lost its sockets are closed with it, and new ones are opened: so what
it still had in a queue is never sent later than its sender knows, and every reply that came
before the end is read. (libzmq's own way to the first, ZMQ_IMMEDIATE, loses the second.)
"""

from __future__ import annotations

import struct
from typing import NoReturn

import trio
import zmq

from .._errors import EndpointError
from .._protocol import packs
from .._protocol.envelope import Frames
from . import endpoints
from .curve import CurveClient
from .heartbeats import heartbeat_times
from .line import Asker
from .zsocket import ZSocket

BATCH = 128  # messages read before trio's other tasks have their turn
TOGETHER = 16  # messages that are handed over together, at the most, if they go in no packs
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


class Dealer:
    """A DEALER socket that is connected to one endpoint, or tries to be.

    Raises:
        EndpointError: The endpoint is no address that can be connected to.
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
        self._own_max_pack_size = packs.max_size(max_message_size)
        self._curve = curve
        self._opened = 0
        self._resting = trio.lowlevel.ParkingLot()  # where the flusher is until it is called
        self._flusher_comes = False
        self._turned_away = 0  # in a row
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._open()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise EndpointError(
                f"cannot connect to {endpoint!r}: {endpoints.reason(error.errno)}"
            ) from error

    async def run(self, asker: Asker) -> None:
        """Carry, until cancelled."""
        self._asker = asker
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._monitor.keep_reading, self._read_monitor)
                nursery.start_soon(self._dealer.keep_reading, self._read)
                nursery.start_soon(self._keep_flushing)
                await self._over.wait()
                if not self._up and self._refused:
                    await trio.sleep(RECONNECT_MOST)  # the socket itself tries no more
                nursery.cancel_scope.cancel()
            self._close()
            self._open()
            await trio.sleep(RECONNECT)  # a server that lets in and throws out is not stormed

    @trio.lowlevel.enable_ki_protection  # a socket that is left open holds `aclose` up for ever
    def _open(self) -> None:
        dealer = self._raw = self._context.socket(zmq.DEALER)
        self._dealer = ZSocket.of(dealer)
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = 0  # bounded by the requests that wait for a reply
        dealer.maxmsgsize = self._max_message_size
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
        address = f"inproc://trioreq.monitor.{self._opened}"  # the last one may not be free yet
        dealer.monitor(address, WATCHED)
        monitor = self._context.socket(zmq.PAIR)
        self._monitor = ZSocket.of(monitor)
        monitor.rcvhwm = 0
        monitor.linger = 0
        monitor.connect(address)
        self._up = self._refused = False
        self.max_pack_size = 0
        self._outbox: list[Frames] = []
        self._over = trio.Event()
        dealer.connect(self._endpoint)

    @trio.lowlevel.enable_ki_protection
    def _close(self) -> None:
        self._raw.disable_monitor()
        self._monitor.close()
        self._dealer.close()

    def send(self, frames: Frames) -> bool:
        """Hand a message over, soon; returns False, and forgets it, if there is no connection.

        The first in a pass of trio's loop goes out at once, and others together: each time that
        libzmq's thread is called costs more than a message.
        """
        if not self._up:
            return False
        self._outbox.append(frames)
        if not self._flusher_comes:
            self._flusher_comes = bool(self._resting.unpark())
            self._flush()
        elif self._lot_is_full():
            self._flush()
        return True

    def _lot_is_full(self) -> bool:
        """Whether no more is to gather: what goes in no pack may be large."""
        packed = len(self._outbox[-1][-1]) < self.max_pack_size
        return len(self._outbox) >= (packs.MAX_MESSAGES if packed else TOGETHER)

    @trio.lowlevel.enable_ki_protection  # half a message would begin the next one
    def _flush(self) -> None:
        """Hand over what is in the outbox."""
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            if self.max_pack_size and len(outbox) > 1:
                outbox = packs.pack(outbox, self.max_pack_size, self._own_max_pack_size)
            for frames in outbox:
                if self._dealer.send(frames):
                    break  # there is no connection any more: the monitor tells it next
            self._dealer.nudge()

    async def _keep_flushing(self) -> NoReturn:
        """Hand over what the others have sent in a pass, after the first of them, for ever."""
        while True:
            self._flusher_comes = False
            self._flush()
            await self._resting.park()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close at once."""
        self._close()
        with trio.CancelScope(shield=True):  # nothing lingers
            await trio.to_thread.run_sync(self._context.term)

    def _read(self) -> bool:
        """Read a batch; returns whether there may be more."""
        receive, arrived = self._dealer.receive, self._asker.arrived
        for _ in range(BATCH):
            frames = receive()
            if frames is None:
                return False
            arrived(frames)
        return True

    def _read_monitor(self) -> None:
        while (told := self._monitor.receive()) is not None:
            event, value = EVENT.unpack(told[0])
            if event == zmq.EVENT_CONNECTED:
                self._asker.connecting()
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not self._over.is_set():
                # After the end of a connection this socket is closed, though it has a new one.
                self._up = True
                self._turned_away = 0
                self._asker.connected()
            elif event & FAILED:
                self._failed(event, value)
            elif event == zmq.EVENT_DISCONNECTED and self._up:
                while self._read():  # what came before the end counts
                    pass
                self._up = False
                self._outbox.clear()
                self._asker.lost()
                self._over.set()

    def _failed(self, event: int, value: int) -> None:
        """A handshake has failed; libzmq tells little of why."""
        self._turned_away += 1
        why = ""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            why = f"the server does not let this client in (status {value})"
            if self._curve is not None:
                why += f": is its key {self._curve.keys.public} on the server's list?"
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            why = (
                "the server wants a client to prove who it is, by CURVE or PLAIN"
                if self._curve is None
                else "the server does not speak CURVE"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            why = "what it says in the handshake is not understood: is it a ZeroMQ server?"
        elif self._curve is not None and self._turned_away >= WRONG_KEY:
            why = (
                "the server closes the connection in the handshake and does not say why: "
                "is the server's key right? Does it speak CURVE? Is it full?"
            )
        if not why:
            self._asker.turned_away()
            return
        self._turned_away = 0
        self._refused = True
        self._asker.refused(why)
        self._over.set()
