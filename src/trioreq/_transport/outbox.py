"""What the server sends: each message to its own connection, or to nobody.

Messages that are ready one after the other go out together, and those for a client that takes
packs go in packs. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN
from typing import TYPE_CHECKING

from .._protocol import packs
from .._protocol.envelope import Frames
from .._request import Peer
from .interfaces import Unsent
from .zsocket import ZSocket

if TYPE_CHECKING:
    from .interfaces import Session


class RouterLink:
    """One connection to the ROUTER, from its first message on."""

    __slots__ = (
        "automatic",
        "client",
        "descriptor",
        "gone",
        "max_pack_size",
        "outbox",
        "own_max_pack_size",
        "routing_id",
        "session",
    )

    session: Session

    def __init__(self, outbox: Outbox, descriptor: int, routing_id: bytes, client: Peer) -> None:
        self.outbox = outbox
        self.descriptor = descriptor
        self.routing_id = routing_id
        self.automatic = routing_id.startswith(b"\0")  # libzmq made it, and uses it once only
        self.client = client
        self.gone = False
        self.max_pack_size: int = 0
        self.own_max_pack_size: int = outbox.own_max_pack_size

    def send(self, frames: Frames) -> None:
        """Hand a message over to this connection or to nobody: now, or with others soon."""
        outbox = self.outbox
        outbox.messages.append((self, frames))
        if self.max_pack_size:
            outbox.packing = True
        if not outbox.holding:
            outbox.release()


class Outbox:
    """Messages, and the ROUTER that they go to.

    Args:
        router: The socket.
        read_monitor: Takes in who has gone.
        own_max_pack_size: Bytes of the largest pack that a client may send, to tell it.

    Attributes:
        messages: What is to be handed over, and to whom.
        holding: Whether more will be put there before anybody waits: it goes out together then.
        packing: Whether some of it is for who takes packs.
        handed_over: How many messages were.
    """

    def __init__(
        self, router: ZSocket, read_monitor: Callable[[], object], own_max_pack_size: int
    ) -> None:
        self._router = router
        self._read_monitor = read_monitor
        self.own_max_pack_size: int = own_max_pack_size
        self.messages: list[tuple[RouterLink, Frames]] = []
        self.holding = False
        self.packing = False
        self.handed_over = 0

    def gather(self, work: Callable[[], object]) -> None:
        """Do what may send many messages, and hand them over together: it is cheaper."""
        self.holding = True
        try:
            work()
        finally:
            self.release()

    def release(self) -> None:
        """Hand over all there is, each message to its own connection or to nobody."""
        self.holding = False
        if not self.messages:
            return
        messages, self.messages = self.messages, []
        if self.packing:
            self.packing = False
            messages = _packed(messages)
        send_to = self._router.send_to
        sent = 0
        try:
            for link, frames in messages:
                if not link.automatic:
                    self._read_monitor()  # another connection may have the routing id by now
                if link.gone:
                    _unsent(link, frames, Unsent.GONE)
                    continue
                error = send_to(link.routing_id, frames)
                if error:
                    _unsent(link, frames, Unsent.FULL if error == EAGAIN else Unsent.GONE)
                    continue
                sent += 1 if len(frames) > 1 else packs.messages_in(frames)
        finally:
            self.handed_over += sent
            self._router.nudge()  # a send eats the edge, one that fails too


def _packed(messages: list[tuple[RouterLink, Frames]]) -> list[tuple[RouterLink, Frames]]:
    """Put what is for the same link into packs, if it takes them."""
    by_link: dict[RouterLink, list[Frames]] = {}
    for link, frames in messages:
        by_link.setdefault(link, []).append(frames)
    packed: list[tuple[RouterLink, Frames]] = []
    for link, together in by_link.items():
        if link.max_pack_size and len(together) > 1:
            together = packs.pack(together, link.max_pack_size, link.own_max_pack_size)
        packed.extend([(link, frames) for frames in together])
    return packed


def _unsent(link: RouterLink, frames: Frames, why: Unsent) -> None:
    for _ in range(packs.messages_in(frames)):
        link.session.unsent(why)
