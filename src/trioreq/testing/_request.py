"""A request without a server, for unit tests of handlers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from .._checks import check_instance
from .._protocol.envelope import body as body_of
from .._request import AsyncFunction, Peer, Request, set_session


class _Session:
    """The tasks of a client, in a test's nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Start one."""
        self._nursery.start_soon(async_fn, *args)


def make_request(
    body: bytes | Sequence[bytes] = b"",
    *,
    client: Peer | None = None,
    deadline: float = math.inf,
    nursery: trio.Nursery | None = None,
) -> Request:
    """Make a request for calling a handler in a test.

    It has no server, and never ends. `trioreq.check_cancelled` finds a request only where a server
    calls the handler: test a handler that calls it with `open_memory_server`.

    Args:
        body: One frame, or a sequence of them.
        client: The client that sent it; None for a new one.
        deadline: When it times out, on trio's clock in seconds.
        nursery: Where ``request.client.start_soon`` starts tasks; None if the handler does not call
            it.

    Raises:
        TypeError: The body is not bytes, or has no frames.

    Example:
        >>> async def test_a_picture_is_resized():
        ...     assert await resize(make_request(b"cat")) == b"small cat"
    """
    if client is None:
        client = Peer(id=1, address="127.0.0.1", socket_type="REQ")
    request = Request(client, body_of("body", body), deadline)
    if nursery is not None:
        check_instance("nursery", nursery, trio.Nursery, "a nursery or None")
        set_session(client, _Session(nursery))
    return request
