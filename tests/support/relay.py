"""A TCP relay that passes on what it reads, until it stops.

It stands in for a firewall or a machine that forgets a connection: neither side sees an end. It
needs no rights, but cannot lose a packet: its kernel acknowledges what it has read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from harness.zmtp import address_of


class Relay:
    """The relay.

    Attributes:
        endpoint: Where it listens.
    """

    endpoint: str

    def __init__(self, target: str) -> None:
        self._target = target
        self._silent = False

    def fall_silent(self) -> None:
        """Pass nothing on any more, and close nothing."""
        self._silent = True

    async def serve(self, client: trio.SocketStream) -> None:
        """Join a client to the target."""
        address = address_of(self._target)
        assert isinstance(address, tuple)
        async with await trio.open_tcp_stream(*address) as server:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, client, server, scope)
                    nursery.start_soon(self._pass_on, server, client, scope)

    async def _pass_on(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                if self._silent:
                    await trio.sleep_forever()
                await target.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def open_relay(target: str) -> AsyncIterator[Relay]:
    """A relay to an endpoint of tcp."""
    relay = Relay(target)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, relay.serve, 0, host="127.0.0.1"))
        relay.endpoint = f"tcp://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield relay
        nursery.cancel_scope.cancel()
