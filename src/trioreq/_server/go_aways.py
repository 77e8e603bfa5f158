"""Sends go-aways: clients send new requests on another connection, and then close this one.

A go-away is sent at a drain, and when a connection is too old. Only a client that has requested a
hello is sent one: it implements the protocol, in which a client ignores what it does not know.
"""

from __future__ import annotations

import random

import trio
from trio_util import AsyncBool

from .._protocol import envelope as wire
from .._transport.outbox import Outbox
from .client import Client
from .deadlines import Deadlines, Timer

JITTER = 0.1  # of `max_connection_age`: connections that begin together do not end together


class GoAways:
    """The clients that may be sent a go-away.

    Args:
        outbox: Sends the go-aways.
        max_age: Seconds from the hello to the go-away; None for no limit.

    Attributes:
        sent: Go-aways that were sent.
    """

    def __init__(self, outbox: Outbox, max_age: float | None) -> None:
        self._outbox = outbox
        self._max_age = max_age
        self._clients: dict[Client, Timer[Client] | None] = {}
        self._has_clients = AsyncBool(False)
        self._ages: Deadlines[Client] = Deadlines(self._end_age)
        self.sent = 0

    async def run(self) -> None:
        """Send go-aways on connections that are too old, until cancelled."""
        await self._ages.run()

    def greeted(self, client: Client) -> None:
        """A client was sent a hello."""
        if client in self._clients:
            return
        timer = None
        if self._max_age is not None:
            age = self._max_age * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # no secret
            timer = self._ages.add(trio.current_time() + age, client)
        self._clients[client] = timer
        self._has_clients.value = True

    def forget(self, client: Client) -> None:
        """A client is disconnected."""
        timer = self._clients.pop(client, None)
        if timer is not None:
            self._ages.forget(timer)
        self._has_clients.value = bool(self._clients)

    def send_all(self, reason: str) -> None:
        """Send a go-away to each client."""
        if not self._clients:
            return
        self._outbox.cork()
        for client in self._clients:
            self._send(client, reason)
        self._outbox.flush()

    def close(self) -> None:
        """Forget all clients: the server ends."""
        for client in tuple(self._clients):
            self.forget(client)

    async def wait_followed(self) -> None:
        """Wait until all clients are disconnected."""
        await self._has_clients.wait_value(False)

    def _end_age(self, client: Client) -> None:
        self._clients[client] = None
        self._send(client, "the connection has reached max_connection_age")

    def _send(self, client: Client, reason: str) -> None:
        self.sent += 1
        self._outbox.send(client.connection, wire.go_away(reason))
