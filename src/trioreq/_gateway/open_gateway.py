"""`open_gateway`: checks the options, connects to the workers, and makes the handler."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from .._checks import (
    check_count,
    check_endpoints,
    check_in_trio,
    check_message_size,
    check_seconds,
)
from .._client.open_connections import open_connections
from .._errors import EndpointError
from .._nursery import open_own_nursery
from .._protocol.frame_sizes import LEAST_AT_CLIENT
from .._server.handlers import Handler
from .._transport import endpoints as addresses
from .gateway import Gateway, Worker


def check_workers(
    endpoints: str | Sequence[str],
    in_flight: int,
    retries: int,
    connect_timeout: float | None,
    names: tuple[str, str, str, str] = ("endpoints", "in_flight", "retries", "connect_timeout"),
) -> tuple[str, ...]:
    """Check what says which workers there are; returns their addresses.

    Raises:
        EndpointError: An address cannot be connected to, or there is none.
        TypeError: One is of the wrong type.
        ValueError: One is out of its range.
    """
    checked = check_endpoints(names[0], endpoints)
    if not checked:
        raise EndpointError(f"{names[0]} must have at least one address, got none")
    for endpoint in checked:
        addresses.check_client(endpoint)
    check_count(names[1], in_flight, 1)
    check_count(names[2], retries, 0)
    check_seconds(names[3], connect_timeout)
    return checked


@asynccontextmanager
async def open_gateway(
    endpoints: str | Sequence[str],
    *,
    in_flight: int = 1,
    retries: int = 0,
    connect_timeout: float | None = 10.0,
    heartbeat: float | None = 10.0,
    max_message_size: int = 16 * 1024 * 1024,
) -> AsyncIterator[Handler]:
    """Connect to existing servers, the workers, and make a handler that forwards requests to them.

    A worker is a REP or ROUTER socket, in any language, that binds an address. A request is
    forwarded to the worker with the fewest requests in flight. Its frames and those of the reply
    are not changed. While no worker is free, requests wait in the server's queue: `serve` runs at
    most as many handlers as all workers have slots. If a client disconnects before that, its
    request is never forwarded. If it disconnects later, the worker finishes the request, which
    takes a slot until then, and the reply is dropped.

    Args:
        endpoints: The address of each worker, or of the only one: ``tcp://127.0.0.1:5556``.
        in_flight: Requests that a worker may have at once. A REP socket processes one after the
            other, so this is 1 for it. A ROUTER may have more; it returns all frames before the
            empty one with the reply, as it does for requests from a proxy.
        retries: How often a request is forwarded again, to another worker if there is one, when
            the connection to its worker was lost. The work may be done twice then: use it only
            where that does no harm. With none left the client is answered ``handler-failed``. (A
            request whose worker has shut down before it called its handler is always forwarded
            again.)
        connect_timeout: Seconds without a connection to any worker after which requests are
            answered ``no-worker``; None for no limit.
        heartbeat: Seconds after which a worker that is stopped or cut off is detected; None sends
            no heartbeats.
        max_message_size: Bytes that a frame of a reply may have; a larger one closes the
            connection. At least 41.

    Raises:
        EndpointError: An address cannot be connected to, or there is none.
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range.
        RuntimeError: It does not run in trio.

    Example:
        >>> async def main():
        ...     workers = ["tcp://127.0.0.1:5556", "tcp://127.0.0.1:5557"]
        ...     async with trioreq.open_gateway(workers) as handler:
        ...         await trioreq.serve(handler, "tcp://127.0.0.1:5555")
        >>> trio.run(main)  # doctest: +SKIP
    """
    check_in_trio("trio.run(main), and open_gateway in main")
    checked = check_workers(endpoints, in_flight, retries, connect_timeout)
    check_seconds("heartbeat", heartbeat)
    check_message_size(max_message_size, LEAST_AT_CLIENT["NULL"], "NULL")
    async with AsyncExitStack() as stack:
        workers = []
        for endpoint in checked:
            connections = await stack.enter_async_context(
                open_connections(
                    endpoint,
                    connect_timeout=None,  # the gateway asks only a worker that is connected
                    heartbeat=heartbeat,
                    max_message_size=max_message_size,
                )
            )
            workers.append(Worker(connections, in_flight))
        limit = math.inf if connect_timeout is None else connect_timeout
        gateway = Gateway(workers, retries, limit)
        nursery = await stack.enter_async_context(open_own_nursery())
        for worker, endpoint in zip(workers, checked, strict=True):
            nursery.start_soon(gateway.follow, worker, endpoint)
        yield gateway
