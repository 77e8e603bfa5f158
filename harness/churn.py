"""Peers that connect, send and leave, many a second, and a check of whom each message is from.

Each peer connects from an address of its own, and names it in each message. The kernel knows the
address of a descriptor's other end; it is asked when the connection table takes in that a
connection was accepted. The connection still holds its descriptor then, if it ever sends a message:
it cannot before the gate's answer, which comes later.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from unittest import mock

from trioreq._server.connection import Connection

from trioreq._protocol.connection_table import Presence
from trioreq._transport.messages import Known, Names, Origin, PyMessages, Received
from trioreq._transport.outbox import RouterLink
from trioreq._transport.router import Router

from .zmtp import GARBAGE, RawPeer, message

THREADS = 6
ROUTING_IDS = 64  # explicit ones, which come back again and again

_numbers = itertools.count(1)


def new_address() -> str:
    """An address to connect from that was never used before."""
    number = next(_numbers)
    return f"127.{1 + (number >> 16) % 250}.{number >> 8 & 255}.{number & 255}"


class Ledger:
    """Who sent each message: by the kernel, by trioreq, and by the descriptor alone.

    Attributes:
        messages: Messages that were given to a connection.
        wrong: Of those, how many were another connection's.
        looked_up: Messages that were looked up, not known by an automatic routing id.
        gone: Of those, how many were found to be from a connection that has ended.
        wrongly_gone: Of those, how many were from one that has not.
        wrong_by_descriptor: Of those looked up, for how many the newest connection on the
            descriptor is another one.
    """

    def __init__(self) -> None:
        self.messages = self.wrong = 0
        self.looked_up = self.gone = self.wrongly_gone = self.wrong_by_descriptor = 0
        self._holder: dict[int, str] = {}  # number of a connection -> where it is from
        self._number: dict[str, int] = {}
        self._newest: dict[int, int] = {}  # descriptor -> number
        self._ended: set[int] = set()

    def opened(self, number: int, descriptor: int) -> None:
        """A connection was accepted."""
        self._newest[descriptor] = number
        address = peer_of(descriptor)
        self._holder[number] = address
        self._number[address] = number

    def ended(self, number: int | None) -> None:
        """A connection has ended."""
        assert number is not None, "an end without an opening"
        self._ended.add(number)

    def attributed(self, address: str, descriptor: int, link: RouterLink | None) -> None:
        """A message from this address was looked up; `link` is None if its peer is gone."""
        self.looked_up += 1
        self.wrong_by_descriptor += self._holder.get(self._newest[descriptor]) != address
        if link is None:
            self.gone += 1
            self.wrongly_gone += self._number[address] not in self._ended

    def arrived(self, address: str, number: int) -> None:
        """A message from this address was given to a connection."""
        self.messages += 1
        self.wrong += self._holder.get(number) != address

    def __str__(self) -> str:
        return (
            f"{self.messages} messages, {self.wrong} wrong by stamp; {self.looked_up} looked up, "
            f"{self.wrong_by_descriptor} wrong by the descriptor alone; {self.gone} from the "
            f"gone, {self.wrongly_gone} of them wrongly"
        )


@contextmanager
def watched() -> Iterator[Ledger]:
    """Keep a ledger of all servers that run meanwhile. First frames must name their sender."""
    ledger = Ledger()
    opened, ended = Presence.opened, Presence.ended
    attribute, arrived = Router._attribute, Connection.arrived
    receive_from = PyMessages.receive_from
    newest = b""  # the first frame of the message that was read last

    def spy_opened(self: Presence, descriptor: int) -> int | None:
        unended = opened(self, descriptor)
        ledger.opened(self.stamp, descriptor)
        return unended

    def spy_ended(self: Presence, descriptor: int) -> int | None:
        number = ended(self, descriptor)
        ledger.ended(number)
        return number

    def spy_receive_from(self: PyMessages, known: Known, names: Names, /) -> Received | None:
        nonlocal newest
        message = receive_from(self, known, names)
        if message is not None:
            newest = message[1][0]
        return message

    def spy_attribute(self: Router, routing_id: bytes, origin: Origin) -> RouterLink | None:
        link = attribute(self, routing_id, origin)
        ledger.attributed(newest.decode(), origin[0], link)
        return link

    def spy_arrived(self: Connection, frames: list[bytes]) -> None:
        ledger.arrived(frames[0].decode(), self.link.client.id)
        arrived(self, frames)

    with (
        mock.patch.object(Presence, "opened", spy_opened),
        mock.patch.object(Presence, "ended", spy_ended),
        mock.patch.object(PyMessages, "receive_from", spy_receive_from),
        mock.patch.object(Router, "_attribute", spy_attribute),
        mock.patch.object(Connection, "arrived", spy_arrived),
    ):
        yield ledger


def peer_of(descriptor: int) -> str:
    """The address of a descriptor's other end; empty if there is none any more."""
    with suppress(OSError):
        borrowed = socket.socket(fileno=descriptor)
        try:
            name: object = borrowed.getpeername()
        finally:
            borrowed.detach()
        if isinstance(name, tuple):
            return str(name[0])
        return os.fsdecode(name).rpartition("/")[2] if isinstance(name, bytes | str) else ""
    return ""


def live(endpoint: str, number: int) -> None:
    """Connect, send, and leave, in one of several ways."""
    address = new_address()
    name = address.encode()
    say = message(name, b"", name)
    way = number % 7
    if number % 3 == 0:
        routing_id = b""
    elif way < 3:  # its own: under one that is taken, it would have no replies
        routing_id = b"id of " + name
    else:
        routing_id = b"id %d" % (number % ROUTING_IDS)
    with (
        suppress(BrokenPipeError, ConnectionResetError),  # the server may have ended it
        RawPeer(endpoint, address) as peer,
    ):
        peer.shake_hands(b"DEALER", routing_id)
        if way < 3:
            for _ in range(3):
                peer.send(say)
                assert [peer.read_frame() for _ in range(3)] == [name, b"", name]
        match way:
            case 0:
                peer.send(say + GARBAGE)  # libzmq reports the end before what was sent
            case 1 | 4:
                peer.send(say * 2 + say[:-1])
                peer.reset()
            case 5:
                peer.send(say * 4 + GARBAGE)
            case _:
                peer.send(say * 4)


def load(endpoint: str, connections: int, live: Callable[[str, int], None] = live) -> float:
    """Run so many peers, some at a time; returns how many seconds it took. Blocks."""
    start = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for running in [pool.submit(live, endpoint, number) for number in range(connections)]:
            running.result()
    return time.monotonic() - start
