"""Hostile peers on a server process, and a healthy client beside them: is anything left of them?

What is looked at after the end is waited for by asking the server until it is so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from ..clients import ClientSocket, open_clients
from ..fuzz import hammer
from ..servers import ServerProcess, open_server

LIMIT = 10.0  # seconds for a reply, and for the server to come to rest


@dataclass
class Report:
    """What was measured.

    Attributes:
        before: The server's statistics, memory in bytes and descriptors, after the first peers.
        after: The same at the end.
        replies: How many the healthy client had; each was right.
        seconds: How long the peers took, those of the start left out.
        log: The lines that the server has logged.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    replies: int
    seconds: float
    log: list[str]


async def measure(addr: str, seed: int, first: int, number: int) -> Report:
    """Let hostile peers at a server.

    Args:
        addr: Where it serves.
        seed: What the peers are made of.
        first: How many of them come before the measurement, so that what the server allocates
            only once is there.
        number: How many come then.

    Raises:
        AssertionError: The server let a hostile peer wait, or gave the healthy client a wrong
            reply.
        trio.TooSlowError: The healthy client had no reply, or the server did not come to rest.
        ChildFailed: The server has died.
    """
    async with open_server(addr, kind="echo") as server:
        descriptors = (await server.state())["descriptors"]
        await _hammer(server, seed, range(first))
        before = await _at_rest(server, descriptors)
        start = trio.current_time()
        async with _healthy_client(server.endpoint) as replies:
            await _hammer(server, seed, range(first, first + number))
        seconds = trio.current_time() - start
        after = await _at_rest(server, descriptors)
        return Report(before, after, replies[0], seconds, "\n".join(server.log).splitlines())


async def _hammer(server: ServerProcess, seed: int, numbers: range) -> None:
    await trio.to_thread.run_sync(hammer, server.endpoint, seed, numbers)


async def _at_rest(server: ServerProcess, descriptors: int) -> dict[str, Any]:
    """What the server says of itself once no peer is connected, and its descriptors are closed.

    libzmq closes a descriptor a little later than it reports the connection's end.
    """

    def rests(state: dict[str, Any]) -> bool:
        (statistics,) = state["statistics"]
        found = (statistics["connections"], statistics["in_flight"], state["descriptors"])
        return found == (0, 0, descriptors)

    with trio.fail_after(LIMIT):
        state = await server.until(rests)
    statistics: dict[str, Any] = state["statistics"][0]
    return statistics | {name: state[name] for name in ("memory", "descriptors")}


@asynccontextmanager
async def _healthy_client(endpoint: str) -> AsyncIterator[list[int]]:
    """A client that sends one request after the other; the list holds how many had their reply."""
    replies = [0]

    async def ask(client: ClientSocket) -> None:
        body = b"%d" % replies[0]
        with trio.fail_after(LIMIT):
            assert await client.request(body) == [body]
        replies[0] += 1

    async def keep_asking(client: ClientSocket) -> None:
        while True:
            await ask(client)

    with open_clients() as clients:
        client = clients.connect(endpoint)
        await ask(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking, client)
            yield replies
            nursery.cancel_scope.cancel()
