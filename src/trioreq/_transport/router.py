"""The transport on real sockets.

A ROUTER, its monitor and its gate, as connections that come, speak and go. What is sent to them is
in `_outbox`; all other use of the ROUTER is here, and nothing here waits for a client.
`docs/design.md` has the rules that this follows and the reasons for them.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
import zmq

from .._protocol import packs
from .._protocol.connection_limits import Limits
from .._protocol.connection_table import Presence
from .._protocol.message_guard import Unfinished
from .._request import Peer
from .._server.watchdog import Watchdog
from .guard import Lookout
from .messages import Origin
from .outbox import Outbox, RouterLink
from .server_sockets import Connection, Sockets
from .zap_handler import PUBLIC_KEY, STAMP, Gate, Rules

if TYPE_CHECKING:
    from .interfaces import Host

log = logging.getLogger("trioreq")

BATCH: Final = 256 * 1024  # bytes read before they are worked on: what fits a cache
MESSAGE: Final = 2048  # bytes that a message of one frame counts as, beside its content
FULL = (
    "the process has nearly as many file descriptors open as it may (ulimit -n), and newcomers are "
    "ended until some are free"
)
CATCH_UP = 8  # batches read before newcomers are let in, at the most
EVENT = struct.Struct("=Hi")
PROPERTIES: Final = (STAMP, "Peer-Address", "Socket-Type", "User-Id", PUBLIC_KEY)


class Router:
    """The transport.

    Attributes:
        outbox: What is to be sent.
        thrown_out: How many connections were ended, since they may not stay.
    """

    def __init__(
        self, sockets: Sockets, rules: Rules, limits: Limits, watchdog: Watchdog | None
    ) -> None:
        self._sockets = sockets
        self._watchdog = watchdog
        self._router = sockets.router
        self._monitor = sockets.monitor
        self._gate = Gate(sockets.gate, self._catch_up, rules)
        self._limits = limits
        self._presence = Presence()
        self._unfinished = Unfinished(sockets.max_message_size)
        self._lookout = Lookout(
            self._presence, self._unfinished, self.read_monitor, self._read_up, self._end
        )
        self._room = sockets.room
        self._links: dict[int, RouterLink] = {}
        self._automatic: dict[bytes, RouterLink] = {}  # routing id -> link, while it lives
        max_pack_size = packs.max_size(sockets.max_message_size)
        self.outbox: Outbox = Outbox(sockets.router, self.read_monitor, max_pack_size)
        self._appetite = BATCH
        self.thrown_out = 0
        self._unwelcome: list[tuple[int, int]] = []  # descriptor, connection

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses as really bound."""
        return self._sockets.endpoints

    @property
    def connections(self) -> int:
        """How many connections live, those that have not spoken included."""
        return len(self._presence)

    @property
    def refused(self) -> int:
        """How many connections were not let in."""
        return self._gate.refused

    async def run(self, host: Host) -> None:
        """Let clients come and go, until cancelled. What they say is for `receive` to read."""
        self._host = host  # before the first message is read, and not needed earlier
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._monitor.keep_reading, self.read_monitor)
            nursery.start_soon(self._gate.run, self._throw_out)
            if self._sockets.meter is not None:
                nursery.start_soon(self._lookout.run, self._sockets.meter)

    async def receive(
        self, first: int = BATCH, before_wait: Callable[[], bool] | None = None
    ) -> bool:
        """Let the server have what has come; waits for it if there is nothing.

        For one task at a time.

        Args:
            first: Bytes in the first batch after a wait; each further one has twice as many. If
                few, libzmq reads and writes while these are worked on; if many, it is cheaper.
            before_wait: Called before each wait; returns whether it may have sent something.

        Returns:
            Whether it has waited, so that trio's other tasks had their turn.
        """
        waited = False
        while not self._read(self._appetite):  # then it has found that there is nothing
            waited = await self._wait(first, before_wait) or waited
        self._appetite = min(2 * self._appetite, BATCH)
        return waited

    async def _wait(self, first: int, before: Callable[[], bool] | None) -> bool:
        """Wait until there may be something to read; the last look has found nothing.

        Returns:
            Whether it has.
        """
        self._appetite = first
        if before is not None and before() and self._router.readable():  # a send eats the edge
            return False
        await self._router.wait()
        return True

    def read_monitor(self) -> int:
        """Take in who came and who went; returns the stamp of that."""
        receive = self._monitor.receive
        came: list[tuple[int, int, Connection]] = []
        while (told := receive()) is not None:
            event, descriptor = EVENT.unpack(told[0])
            if event == zmq.EVENT_ACCEPTED:
                number = self._presence.opened(descriptor)
                self._lookout.somebody.set()
                counts = descriptor >= self._room or not self._limits.unlimited
                if counts and (held := self._sockets.hold(descriptor)):
                    came.append((descriptor, self._presence.stamp, held))
            else:
                number = self._presence.ended(descriptor)
            if number is not None:
                self._left(number)
        if came:
            self._count(came)
        return self._presence.stamp

    def _left(self, number: int) -> None:
        """A connection is gone, or counts as gone."""
        self._limits.leave(number)
        self._unfinished.forget(number)
        link = self._links.pop(number, None)
        if link is not None:
            link.gone = True
            self._automatic.pop(link.routing_id, None)
            link.session.left()

    def _count(self, came: Sequence[tuple[int, int, Connection]]) -> None:
        """Let newcomers in as far as the limits allow; the monitor was read after they were held.

        So whoever is still the holder of the descriptor is the one that is held.
        """
        for descriptor, number, held in came:
            if self._presence.holder(descriptor) == number:
                address = held.address
                limit = FULL if descriptor >= self._room else self._limits.enter(number, address)
                if limit is not None:
                    self._gate.turned_away(address, limit)
                    self._presence.forget(descriptor)
                    held.shut_down()
            held.close()

    def _throw_out(self) -> None:
        """End the connections of those that may not stay."""
        for number, link in tuple(self._links.items()):
            if not self._gate.rules.still_hold(link.client):
                self._end(link.descriptor, number)

    def _end(self, descriptor: int, number: int, why: str = "") -> None:
        """Take a connection for gone, and end it really: hold it, then look, then shut it down.

        Args:
            descriptor: The one that it has had.
            number: The connection.
            why: What to log, with its address and the room of a message.
        """
        held = self._sockets.hold(descriptor)
        self.read_monitor()
        if self._presence.holder(descriptor) == number:
            self._presence.forget(descriptor)
            self._left(number)
            self.thrown_out += 1
            if why:
                log.warning(why, held.address if held else "one", self._unfinished.room)
            if held is not None:
                held.shut_down()
        if held is not None:
            held.close()

    def _catch_up(self) -> int:
        """Take in all that was before now; returns the stamp of that.

        The ROUTER too: until it has been read dry, libzmq keeps the routing ids of those who
        went, and would ignore a newcomer under one of them, for good.
        """
        self._read_up()
        return self.read_monitor()

    def _read_up(self) -> bool:
        """Read what has come; returns whether that was all."""
        dry = False
        for _ in range(CATCH_UP):
            dry = not self._read()
            if dry:
                break
        self._host.start()
        self._router.nudge()
        return dry

    def _read(self, room: int = BATCH) -> bool:
        """Read a batch, see who has gone since, then let the server have what came.

        Returns:
            Whether there was anything.
        """
        receive_from = self._router.receive_from
        known = self._automatic
        batch: list[tuple[RouterLink | None, list[bytes]]] = []
        while room > 0:
            message = receive_from(known, PROPERTIES)
            if message is None:
                break
            routing_id, frames, origin = message
            link = known[routing_id] if origin is None else self._attribute(routing_id, origin)
            batch.append((link, frames))
            weight = packs.weight_untrusted(frames[0]) if len(frames) == 1 else len(frames) - 1
            room -= MESSAGE * weight
            for frame in frames:
                room -= len(frame)
        if batch:
            if self._watchdog is not None and self._watchdog.asleep:
                self._watchdog.wake()
            self.read_monitor()
            while self._unwelcome:
                self._end(*self._unwelcome.pop())
            self.outbox.holding = True
            for link, frames in batch:
                if link is None:
                    self._host.unattributed()
                else:
                    link.session.arrived(frames)
            self.outbox.release()
            if self._unfinished.watched:
                self._unfinished.heard([link.client.id for link, _ in batch if link is not None])
        return bool(batch)

    def _attribute(self, routing_id: bytes, origin: Origin) -> RouterLink | None:
        """Find or make the link of a message, by its descriptor and stamp; None if it is gone."""
        descriptor, properties = origin
        number = self._presence.sender(descriptor, int(properties[0]))
        if number is None:
            return None
        link = self._links.get(number)
        if link is None:
            client = _peer(number, properties)
            if not self._gate.rules.still_hold(client):  # it was let in, and has said nothing since
                self._unwelcome.append((descriptor, number))
                return None
            link = RouterLink(self.outbox, descriptor, routing_id, client)
            link.session = self._host.joined(link)
            self._links[number] = link
            if link.automatic:
                self._automatic[routing_id] = link
        return link

    async def aclose(self) -> None:
        """Let what was handed over go out, for a bounded time, and close."""
        await self._sockets.aclose()


def _peer(number: int, properties: tuple[str, ...]) -> Peer:
    """What libzmq and the gate know of a message's sender."""
    _stamp, address, socket_type, user_id, public_key = properties
    uid = pid = None
    if address.startswith("localhost:"):  # ipc: localhost:uid:gid:pid
        uid, _gid, pid = (int(part) for part in address.split(":")[1:])
    return Peer(
        id=number,
        address=address,
        socket_type=socket_type,
        user_id=user_id,
        uid=uid,
        pid=pid,
        public_key=public_key,
    )
