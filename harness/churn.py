"""Peers that connect, send and leave, many a second, and a check of the sender of each message.

Each peer connects from an address of its own, and names it in each message. The kernel knows the
address of a descriptor's other end; it is asked when the connection table takes in that a
connection was accepted. The connection still holds its descriptor then, if it ever sends a message:
it cannot before the ZAP handler's reply, which comes later.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from trioreq._protocol.connection_table import Connection, ConnectionTable
from trioreq._server.client import Client
from trioreq._server.pending_request import PendingRequest
from trioreq._server.requests import Requests
from trioreq._transport.messages import Known, Messages, Names, Origin, Received
from trioreq._transport.router import Router
from trioreq._transport.zsocket import ZSocket

from .zmtp import GARBAGE, RawPeer, message

THREADS = 6
ROUTING_IDS = 64  # explicit ones, which come back again and again

_numbers = itertools.count(1)


def new_address() -> str:
    """An address to connect from that was never used before."""
    number = next(_numbers)
    return f"127.{1 + (number >> 16) % 250}.{number >> 8 & 255}.{number & 255}"


class Ledger:
    """The sender of each message: by the kernel, by trioreq, and by the descriptor alone.

    Attributes:
        messages: Messages that were given to a connection.
        wrong: Of those, how many were another connection's.
        looked_up: Messages that were looked up, not known by an automatic routing id.
        late: Of those, how many were found to be of a connection that had ended.
        wrongly_late: Of those, how many were of a connection that had not ended.
        wrong_by_descriptor: Of those looked up, for how many the newest connection on the
            descriptor is another one.
    """

    def __init__(self) -> None:
        self.messages = self.wrong = 0
        self.looked_up = self.late = self.wrongly_late = self.wrong_by_descriptor = 0
        self._holder: dict[int, str] = {}  # number of a connection -> where it is from
        self._number: dict[str, int] = {}
        self._newest: dict[int, int] = {}  # descriptor -> number
        self._ended: set[int] = set()

    def accepted(self, number: int, descriptor: int) -> None:
        """A connection was accepted."""
        self._newest[descriptor] = number
        address = peer_of(descriptor)
        self._holder[number] = address
        self._number[address] = number

    def disconnected(self, connection: Connection | None) -> None:
        """A connection was disconnected."""
        assert connection is not None, "a disconnect without an accept"
        self._ended.add(connection.id)

    def attributed(self, address: str, descriptor: int, sender: Connection | None) -> None:
        """A message of this address was looked up; `sender` is None for a disconnected peer."""
        self.looked_up += 1
        self.wrong_by_descriptor += self._holder.get(self._newest[descriptor]) != address
        if sender is None:
            self.late += 1
            self.wrongly_late += self._number[address] not in self._ended

    def arrived(self, address: str, number: int) -> None:
        """A message from this address was given to a connection."""
        self.messages += 1
        self.wrong += self._holder.get(number) != address

    def __str__(self) -> str:
        return (
            f"{self.messages} messages, {self.wrong} wrong by epoch; {self.looked_up} looked up, "
            f"{self.wrong_by_descriptor} wrong by the descriptor alone; {self.late} of "
            f"connections that had ended, {self.wrongly_late} of them wrongly"
        )


@contextmanager
def watched() -> Iterator[Ledger]:
    """Keep a ledger of all servers that run meanwhile. First frames must name their sender."""
    ledger = Ledger()
    accepted, disconnected = ConnectionTable.accepted, ConnectionTable.disconnected
    sender_of, accept = Router._sender, Requests.accept
    init = ZSocket.__init__
    newest = b""  # the first frame of the message that was read last

    def spy_accepted(
        self: ConnectionTable, descriptor: int
    ) -> tuple[Connection, Connection | None]:
        found = accepted(self, descriptor)
        ledger.accepted(self.epoch, descriptor)
        return found

    def spy_disconnected(self: ConnectionTable, descriptor: int) -> Connection | None:
        connection = disconnected(self, descriptor)
        ledger.disconnected(connection)
        return connection

    def spy_init(self: ZSocket, messages: Messages, *args: Any) -> None:
        """Wrap what a socket calls, whichever implementation of `Messages` it is of."""
        init(self, messages, *args)
        receive_from = self.receive_from

        def spy_receive_from(known: Known, names: Names) -> Received | None:
            nonlocal newest
            message = receive_from(known, names)
            if message is not None:
                newest = message[1][0]
            return message

        self.receive_from = spy_receive_from

    def spy_sender(self: Router, routing_id: bytes, origin: Origin) -> Connection | None:
        sender = sender_of(self, routing_id, origin)
        ledger.attributed(newest.decode(), origin[0], sender)
        return sender

    def spy_accept(
        self: Requests, client: Client, frames: list[bytes], now: float
    ) -> PendingRequest | None:
        ledger.arrived(frames[0].decode(), client.connection.id)
        return accept(self, client, frames, now)

    with (
        mock.patch.object(ConnectionTable, "accepted", spy_accepted),
        mock.patch.object(ConnectionTable, "disconnected", spy_disconnected),
        mock.patch.object(ZSocket, "__init__", spy_init),
        mock.patch.object(Router, "_sender", spy_sender),
        mock.patch.object(Requests, "accept", spy_accept),
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
