"""The client's transport on real sockets: a DEALER and its monitor.

It tells of a connection that comes and goes, and of the replies on it. libzmq connects again by
itself. A message is handed to it only while there is a connection, so none is ever sent later
than its sender knows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import trio
import zmq

from . import _endpoint
from ._errors import EndpointError
from ._transport import Asker
from ._zsocket import ZSocket

BATCH = 128  # messages read before trio's other tasks have their turn
RECONNECT = 0.05  # seconds before the first try to connect again; each further one doubles it
RECONNECT_MOST = 2.0
MONITOR = "inproc://trioreq.monitor"
EVENT = struct.Struct("=Hi")
WATCHED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class Dealer:
    """A DEALER socket that is connected to one endpoint, or tries to be.

    Raises:
        EndpointError: The endpoint is no address that can be connected to.
    """

    def __init__(self, endpoint: str, *, heartbeat: float | None, max_message_size: int) -> None:
        _endpoint.check_client(endpoint)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            dealer = self._context.socket(zmq.DEALER)
            self._dealer = ZSocket(dealer)
            dealer.linger = 0
            dealer.immediate = True
            dealer.sndhwm = dealer.rcvhwm = 0  # bounded by the requests that wait for a reply
            dealer.maxmsgsize = max_message_size
            dealer.reconnect_ivl = round(RECONNECT * 1000)
            dealer.reconnect_ivl_max = round(RECONNECT_MOST * 1000)
            dealer.ipv6 = "[" in endpoint
            if heartbeat is not None:
                dealer.heartbeat_ivl = dealer.heartbeat_timeout = max(1, round(heartbeat * 500))
            dealer.monitor(MONITOR, WATCHED)
            monitor = self._context.socket(zmq.PAIR)
            self._monitor = ZSocket(monitor)
            monitor.rcvhwm = 0
            monitor.linger = 0
            monitor.connect(MONITOR)
            dealer.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise EndpointError(
                f"cannot connect to {endpoint!r}: {_endpoint.reason(error.errno)}"
            ) from error

    async def run(self, asker: Asker) -> None:
        """Carry, until cancelled."""
        self._asker = asker
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._monitor.keep_reading, self._read_monitor)
            nursery.start_soon(self._dealer.keep_reading, self._read)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand a message over; returns False, and forgets it, if there is no connection."""
        try:
            self._dealer.raw.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._dealer.nudge()
        return True

    async def aclose(self) -> None:
        """Close at once."""
        self._dealer.raw.disable_monitor()
        self._monitor.raw.close()
        self._dealer.raw.close()
        with trio.CancelScope(shield=True):  # nothing lingers
            await trio.to_thread.run_sync(self._context.term)

    def _read(self) -> bool:
        """Read a batch; returns whether there may be more."""
        recv = self._dealer.raw.recv_multipart
        for _ in range(BATCH):
            try:
                frames = recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._asker.arrived(frames)
        return True

    def _read_monitor(self) -> None:
        monitor = self._monitor
        while monitor.readable():
            event, _ = EVENT.unpack(monitor.raw.recv(zmq.NOBLOCK))
            monitor.raw.recv(zmq.NOBLOCK)  # the endpoint
            if event == zmq.EVENT_CONNECTED:
                self._asker.connecting()
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._asker.connected()
            else:
                while self._read():  # what came before the end counts
                    pass
                self._asker.lost()
