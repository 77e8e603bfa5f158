"""What is below a client: the line that carries its messages, and the nursery that runs it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from .._nursery import open_own_nursery
from .._transport.curve import CurveClient
from .._transport.dealer import Dealer
from .._transport.line import Line
from .._transport.network import Network
from .connections import Connections


@asynccontextmanager
async def open_connections(
    endpoint: str | Network,
    *,
    connect_timeout: float | None,
    heartbeat: float | None,
    max_message_size: int,
    curve: CurveClient | None = None,
) -> AsyncIterator[Connections]:
    """Open the connections of a client. Its arguments are those of `open_client`, checked."""
    line: Line
    if isinstance(endpoint, Network):
        line = endpoint.line(heartbeat=heartbeat, max_message_size=max_message_size)
    else:
        line = Dealer(endpoint, heartbeat=heartbeat, max_message_size=max_message_size, curve=curve)
    connections = Connections(
        line, str(endpoint), math.inf if connect_timeout is None else connect_timeout
    )
    try:
        async with open_own_nursery() as nursery:
            # Shielded, since a shielded request in the block needs the client after a cancel.
            background = trio.CancelScope(shield=True)
            nursery.start_soon(_run_in, background, connections)
            try:
                yield connections
            finally:
                background.cancel()
                connections.close()
    finally:
        await connections.aclose()


async def _run_in(scope: trio.CancelScope, connections: Connections) -> None:
    with scope:
        await connections.run()
