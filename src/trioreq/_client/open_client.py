"""`open_client`: checks the options, and opens a client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .._checks import (
    check_count,
    check_endpoint,
    check_in_trio,
    check_instance,
    check_message_size,
    check_seconds,
)
from .._protocol.frame_sizes import LEAST_AT_CLIENT
from .._protocol.zap import Mechanism
from .._transport.curve import CurveClient
from .._transport.network import Network
from .client import Client
from .open_connections import open_connections


@asynccontextmanager
async def open_client(
    endpoint: str | Network,
    *,
    timeout: float | None = None,
    retries: int = 0,
    connect_timeout: float | None = 10.0,
    heartbeat: float | None = 10.0,
    max_message_size: int = 16 * 1024 * 1024,
    curve: CurveClient | None = None,
) -> AsyncIterator[Client]:
    """Open a client of one server. Leaving the block closes it, and cancels the requests in flight.

    The server is a trioreq server, a REP socket, or any ROUTER that sends envelopes back unchanged.
    The client connects in the background, and connects again when the connection is lost. Requests
    wait for the connection.

    Args:
        endpoint: The server's address: ``tcp://127.0.0.1:5555``, ``tcp://db.example:5555``,
            ``ipc:///run/my-service.sock``. A host name is resolved for each attempt to
            connect, and all of its addresses are tried.
        timeout: Seconds that a request may take; None for no limit but the deadline of the cancel
            scopes around the call. The earlier of both is sent with the request, and the server
            cancels it then.
        retries: How often a request is sent again after its connection was lost. The work may be
            done twice then: use it only where that does no harm. (A request whose handler was not
            called before the server shut down is always sent again.)
        connect_timeout: Seconds that a request waits for a connection, the first or a later one;
            None for no limit.
        heartbeat: Seconds after which a server that is stopped or cut off is detected; None sends
            no heartbeats.
        max_message_size: Bytes that a frame of a reply may have; a larger one closes the
            connection. At least 41, and 135 with CURVE, for the handshake.
        curve: The server's key and the client's own keys, for a server that requires CURVE.

    Raises:
        EndpointError: The endpoint is not an address that can be connected to.
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range.
        RuntimeError: It does not run in trio.

    Example:
        >>> async def main():
        ...     async with trioreq.open_client("tcp://127.0.0.1:5555", timeout=5) as client:
        ...         print(await client.request(b"hello"))
        >>> trio.run(main)  # doctest: +SKIP
    """
    check_in_trio("trio.run(main), and open_client in main")
    check_seconds("timeout", timeout)
    check_seconds("connect_timeout", connect_timeout)
    check_seconds("heartbeat", heartbeat)
    check_count("retries", retries, 0)
    if curve is not None:
        check_instance("curve", curve, CurveClient, "a CurveClient or None", secret=True)
    mechanism: Mechanism = "NULL" if curve is None else "CURVE"
    check_message_size(max_message_size, LEAST_AT_CLIENT[mechanism], mechanism)
    if isinstance(endpoint, Network):
        if curve is not None:
            raise ValueError("curve must be None with a Network")
    else:
        check_endpoint("endpoint", endpoint)
    async with open_connections(
        endpoint,
        connect_timeout=connect_timeout,
        heartbeat=heartbeat,
        max_message_size=max_message_size,
        curve=curve,
    ) as connections:
        yield Client(connections, timeout=timeout, retries=retries)
