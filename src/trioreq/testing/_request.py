"""A request without a server, for unit tests of handlers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .._protocol.envelope import body as body_of
from .._request import Peer, Request

PEER = Peer(id=1, address="127.0.0.1", socket_type="REQ")


def make_request(
    body: bytes | Sequence[bytes] = b"",
    *,
    client: Peer = PEER,
    deadline: float = math.inf,
) -> Request:
    """Make a request for calling a handler in a test.

    It has no server, and never ends. `trioreq.check_cancelled` finds a request only where a server
    calls the handler: test a handler that calls it with `open_memory_server`.

    Args:
        body: One frame, or a sequence of them.
        client: The client that sent it.
        deadline: When it times out, on trio's clock in seconds.

    Raises:
        TypeError: The body is not bytes, or has no frames.

    Example:
        >>> async def test_a_picture_is_resized():
        ...     assert await resize(make_request(b"cat")) == b"small cat"
    """
    return Request(client, body_of("body", body), deadline)
